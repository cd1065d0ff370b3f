"""Writes and reads prepared video sets: TFRecord shards of JPEG frames, each with an index.

A shard contains one `tf.train.SequenceExample` per video. JPEG frames are in the feature list `frames`; the context has
the fields of a `VideoRecord`, plus `height`, `width`, `frame_count` and `rate`. The index of a shard says at which byte
each record begins, so that videos can be read in any order. It also lists the videos that could not be decoded. A shard
without an index is incomplete and ignored.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hdc_keras.data.decoding import FrameSize
from hdc_keras.data.records import StoredVideo, VideoRecord
from hdc_keras.data.storage import read_bytes, size_of
from hdc_keras.errors import DataError, VideoDecodeError
from hdc_keras.files import digest, remove_leftovers, replacing, write_text

FORMAT = 1
SET_FILE = "prepared.json"
FRAMES = "frames"
LABEL_PREFIX = "label/"
# Corrects moments that rounding put just before their frame. In frames.
_ROUNDING = 1e-6
# A record of a TFRecord file: length of the data (8 bytes), checksum of the length (4), data, checksum of the data (4).
_HEADER_BYTES, _FOOTER_BYTES = 12, 4


@dataclass(frozen=True)
class EncodedVideo:
    """The frames of a video as JPEG.

    Attributes:
        frames: one JPEG per frame.
        size: (height, width) in pixels.
        rate: frames per second; 0 if unknown.
    """

    frames: list[bytes]
    size: tuple[int, int]
    rate: float


@dataclass(frozen=True)
class PreparedSet:
    """The videos and options of a prepared set: the content of `prepared.json`.

    Attributes:
        videos: number of videos, including those that cannot be decoded.
        videos_per_shard: number of these videos assigned to each shard, in the order of their ids.
        size: (height, width) of a frame in pixels, or the maximum length of its shorter side.
        quality: JPEG quality, 1 to 95.
        fps: frames per second; `None` if every frame is kept.
        listing: SHA-256 of the ids, labels, splits and groups of the videos.
        format: version of the file format.
    """

    videos: int
    videos_per_shard: int
    size: FrameSize
    quality: int
    fps: float | None
    listing: str
    format: int = field(default=FORMAT)

    @property
    def shards(self) -> int:
        """Number of shards of the complete set."""
        return -(-self.videos // self.videos_per_shard)

    def shard_name(self, number: int) -> str:
        """File name of a shard."""
        return f"shard-{number:05d}-of-{self.shards:05d}.tfrecord"


def index_path(shard: str) -> str:
    """Path of a shard's index."""
    return f"{shard.removesuffix('.tfrecord')}.json"


def write_shard(shard: Path, videos: Iterable[tuple[VideoRecord, EncodedVideo | str]]) -> dict[str, Any]:
    """Write a shard, then its index, both atomically.

    No other process may write this shard at the same time: temporary files that a killed process left are removed.

    Args:
        shard: path of the shard.
        videos: each with its frames, or with the reason why it could not be decoded.

    Returns:
        The index.
    """
    index_file = Path(index_path(str(shard)))
    remove_leftovers(shard)
    remove_leftovers(index_file)
    with replacing(shard) as temporary:
        index = _write_records(temporary, videos)
        index["sha256"] = digest(temporary)
    write_text(index_file, json.dumps(index, indent=1))
    return index


def _write_records(file: Path, videos: Iterable[tuple[VideoRecord, EncodedVideo | str]]) -> dict[str, Any]:
    """Write the records of a shard, and return its index except for the checksum."""
    import tensorflow as tf

    index: dict[str, Any] = {"videos": [], "failed": []}
    offset = 0
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record, video in videos:
            about = {"path": record.path, "video_id": record.video_id, "labels": dict(record.labels)} | {
                "split": record.split,
                "group": record.group,
                **({"segment": list(record.segment)} if record.segment else {}),
            }
            if isinstance(video, str):
                index["failed"].append(about | {"cause": video})
                continue
            data = _serialised(record, video)
            writer.write(data)
            size = _HEADER_BYTES + len(data) + _FOOTER_BYTES
            height, width = video.size
            stored = {"offset": offset, "size": size, "frames": len(video.frames), "rate": video.rate}
            index["videos"].append(about | stored | {"height": height, "width": width})
            offset += size
    return index | {"bytes": offset}


def _serialised(record: VideoRecord, video: EncodedVideo) -> bytes:
    import tensorflow as tf

    example = tf.train.SequenceExample()
    context = example.context.feature
    texts: dict[str, str | None] = {
        "video_id": record.video_id,
        "path": record.path,
        "split": record.split,
        "group": record.group,
    }
    texts |= {LABEL_PREFIX + name: label for name, label in record.labels.items()}
    for name, text in texts.items():
        if text is not None:
            context[name].bytes_list.value.append(text.encode())
    for name, number in zip(("height", "width", "frame_count"), (*video.size, len(video.frames)), strict=True):
        context[name].int64_list.value.append(number)
    context["rate"].float_list.value.append(video.rate)
    frames = example.feature_lists.feature_list[FRAMES].feature
    for jpeg in video.frames:
        frames.add().bytes_list.value.append(jpeg)
    # The context is an unordered map. Deterministic serialisation gives the same bytes for the same video.
    return example.SerializeToString(deterministic=True)


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder, or a `gs://` URL, contains a prepared set."""
    return size_of(f"{folder}/{SET_FILE}") is not None


def read_set(folder: str | Path) -> PreparedSet:
    """Read `prepared.json`. Raises `DataError` if it cannot be read or has another format version."""
    try:
        values = json.loads(read_bytes(f"{folder}/{SET_FILE}"))
        if values.get("format") != FORMAT:
            raise DataError(
                f"{folder}/{SET_FILE}: has format {values.get('format')}, but this version of hdc-keras reads format "
                f"{FORMAT}. Prepare the set again."
            )
        size = values["size"]
        return PreparedSet(**values | {"size": tuple(size) if isinstance(size, list) else size})
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{folder}/{SET_FILE}: cannot be read ({error}).") from error


def read_indexes(
    folder: str | Path, prepared: PreparedSet, numbers: Iterable[int] | None = None
) -> dict[int, dict[str, Any]]:
    """The indexes of all complete shards, or of those with these numbers. Raises `DataError` if one is unreadable."""
    indexes = {}
    for number in range(prepared.shards) if numbers is None else numbers:
        path = index_path(f"{folder}/{prepared.shard_name(number)}")
        if size_of(path) is not None:
            try:
                indexes[number] = json.loads(read_bytes(path))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path}: cannot be read ({error}). Remove it and run `hdc-keras prepare` again."
                ) from error
    return indexes


def stored_video(shard: str, entry: dict[str, Any]) -> StoredVideo:
    """Location of the frames of a video, from its entry in the index of a shard."""
    return StoredVideo(shard, entry["offset"], entry["size"], entry["frames"], entry["rate"])


def read_prepared(folder: str | Path) -> tuple[list[VideoRecord], list[dict[str, Any]]]:
    """Read the videos of a prepared set, and the index entries of videos that could not be prepared.

    Raises:
        DataError: a shard is missing, its size differs from the index, or an index cannot be read.
    """
    prepared = read_set(folder)
    indexes = read_indexes(folder, prepared)
    missing = [number for number in range(prepared.shards) if number not in indexes]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {prepared.shards} shards are missing; the first is "
            f"{prepared.shard_name(missing[0])}. Run `hdc-keras prepare` again with the same options, for all parts."
        )
    for number, index in indexes.items():
        shard = f"{folder}/{prepared.shard_name(number)}"
        size = size_of(shard) or 0
        if size != index["bytes"]:
            raise DataError(
                f"{shard}: is {size:,} bytes long, but {index['bytes']:,} bytes were written. Copy it again, or remove "
                f"{index_path(shard)} and run `hdc-keras prepare` again."
            )
    records = [
        VideoRecord(
            video["path"],
            video["video_id"],
            video["labels"],
            video["split"],
            video["group"],
            stored_video(f"{folder}/{prepared.shard_name(number)}", video),
            tuple(video["segment"]) if "segment" in video else None,
        )
        for number, index in indexes.items()
        for video in index["videos"]
    ]
    if not records:
        raise DataError(f"{folder}: none of the {prepared.videos} videos could be prepared; see report.json there.")
    return records, [failure for index in indexes.values() for failure in index["failed"]]


def resampled_count(stored: StoredVideo, fps: float | None) -> int:
    """Number of frames of a prepared video at `fps` frames per second; all of them if that is `None`.

    Raises:
        VideoDecodeError: the frame rate of the video is unknown.
    """
    if fps is None:
        return stored.frames
    if not stored.rate:
        raise VideoDecodeError(f"{stored.shard}, byte {stored.offset}", "has no frame rate, which `data.fps` needs")
    return max(1, round(stored.frames / stored.rate * fps))


def resampled_positions(stored: StoredVideo, fps: float | None, indices: np.ndarray) -> np.ndarray:
    """Positions in a prepared video of the frames with these numbers at `fps` frames per second, in the same shape."""
    if fps is None:
        return np.asarray(indices)
    return np.minimum((np.asarray(indices) / fps * stored.rate + _ROUNDING).astype(np.int64), stored.frames - 1)


def read_frames(stored: StoredVideo, indices: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode frames of a stored video without TensorFlow; `pipeline` decodes them in a graph.

    Args:
        stored: location of the video.
        indices: frame numbers, any integer shape. They may repeat.
        size: (height, width) of the result in pixels; the stored size when `None`.

    Returns:
        `indices.shape + (height, width, 3)` uint8, RGB.

    Raises:
        VideoDecodeError: the record cannot be read, or a frame is damaged.
    """
    indices = np.asarray(indices)
    try:
        data = read_bytes(stored.shard, stored.offset, stored.size)[_HEADER_BYTES:-_FOOTER_BYTES]
        jpegs = list(_feature_list(memoryview(data), FRAMES))
        if len(jpegs) != stored.frames:
            raise ValueError(f"contains {len(jpegs)} frames, but its index says {stored.frames}")
        decoded = {position: _decode_jpeg(jpegs[position], size) for position in np.unique(indices).tolist()}
    except (OSError, ValueError, IndexError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken files.
        location = f"{stored.shard}, byte {stored.offset}"
        raise VideoDecodeError(location, f"{error}. `hdc-keras prepare --verify` checks the whole set") from error
    stacked = np.stack([decoded[position] for position in indices.ravel().tolist()])
    return stacked.reshape(*indices.shape, *stacked.shape[1:])


def _decode_jpeg(jpeg: memoryview, size: tuple[int, int] | None) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        if size and (image.height, image.width) != size:
            shrinks = image.height >= size[0] and image.width >= size[1]
            filter_ = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
            return np.asarray(image.resize((size[1], size[0]), filter_))
        return np.asarray(image)


def _feature_list(example: memoryview, name: str) -> Iterator[memoryview]:
    """Yield the byte strings of one feature list of a serialised `SequenceExample`.

    Parses the wire format of protocol buffers, which needs neither TensorFlow nor generated classes. Every message on
    the way to the bytes (FeatureLists 2, entry 1, FeatureList 2, Feature 1, BytesList 1, bytes 1) is a length-delimited
    field.
    """
    for lists in _fields(example, 2):
        for entry in _fields(lists, 1):
            if bytes(_field(entry, 1)) == name.encode():
                for feature in _fields(_field(entry, 2), 1):
                    yield _field(_field(feature, 1), 1)


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the contents of the fields with that number. All fields of the message must be length-delimited."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 != 2:
            raise ValueError("is not a SequenceExample")
        size, position = _varint(message, position)
        if position + size > len(message):
            raise ValueError("is truncated")
        if tag >> 3 == number:
            yield message[position : position + size]
        position += size


def _field(message: memoryview, number: int) -> memoryview:
    content = next(_fields(message, number), None)
    if content is None:
        raise ValueError("is not a SequenceExample of frames")
    return content


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read a variable-length integer. Returns it and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position
