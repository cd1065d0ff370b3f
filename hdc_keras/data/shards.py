"""Prepared video sets: TFRecord shards of JPEG frames, an index beside each, and reading single frames back.

A shard holds a `tf.train.SequenceExample` for each video: the frames as JPEG in the feature list `frames`, and in the
context what a `VideoRecord` says, with `height`, `width`, `frame_count` and `rate`. Its index says where each record
begins, so that videos are read in any order, and which videos could not be decoded. A shard without its index does not
count.
"""

import hashlib
import io
import json
import os
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

FORMAT = 1
SET_FILE = "prepared.json"
FRAMES = "frames"
LABEL_PREFIX = "label/"
# A TFRecord is its length (8 bytes), a checksum of it (4), the data, and their checksum (4).
_BEFORE, _AFTER = 12, 4


@dataclass(frozen=True)
class EncodedVideo:
    """A video's frames as JPEG.

    Attributes:
        frames: one JPEG for each.
        size: (height, width) in pixels.
        rate: frames a second; 0 where the file does not say.
    """

    frames: list[bytes]
    size: tuple[int, int]
    rate: float


@dataclass(frozen=True)
class PreparedSet:
    """What a folder of shards was made from, and how: `prepared.json`.

    Attributes:
        videos: videos asked for.
        videos_per_shard: of these, in the order of their ids, in each shard.
        size: (height, width) of a frame in pixels, or the greatest length of its shorter side.
        quality: of the JPEGs, 1 to 95.
        fps: frames a second, or `None` where every frame was kept.
        listing: digest of the videos' ids, labels, splits and groups.
        format: version of the files' layout.
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
        """How many shards a complete set has."""
        return -(-self.videos // self.videos_per_shard)

    def shard_name(self, number: int) -> str:
        """File name of a shard."""
        return f"shard-{number:05d}-of-{self.shards:05d}.tfrecord"


def index_path(shard: str) -> str:
    """Where a shard's index is."""
    return f"{shard.removesuffix('.tfrecord')}.json"


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is whole or absent, whatever happens meanwhile."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_shard(shard: Path, videos: Iterable[tuple[VideoRecord, EncodedVideo | str]]) -> dict[str, Any]:
    """Write a shard and its index; both are whole or absent, and the index comes last.

    Args:
        shard: path of the shard.
        videos: each with its frames, or with the reason why there are none.

    Returns:
        The index.
    """
    import tensorflow as tf

    temporary = shard.with_name(f".{shard.name}.tmp")
    index: dict[str, Any] = {"videos": [], "failed": []}
    offset = 0
    with tf.io.TFRecordWriter(str(temporary)) as writer:
        for record, video in videos:
            about = {"path": record.path, "video_id": record.video_id, "labels": dict(record.labels)} | {
                "split": record.split,
                "group": record.group,
            }
            if isinstance(video, str):
                index["failed"].append(about | {"cause": video})
                continue
            data = _serialised(record, video)
            writer.write(data)
            size = _BEFORE + len(data) + _AFTER
            height, width = video.size
            stored = {"offset": offset, "size": size, "frames": len(video.frames), "rate": video.rate}
            index["videos"].append(about | stored | {"height": height, "width": width})
            offset += size
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
        index |= {"bytes": offset, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    temporary.replace(shard)
    write_atomically(Path(index_path(str(shard))), json.dumps(index, indent=1))
    return index


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
    # Maps have no order of their own: the same videos are to make the same bytes.
    return example.SerializeToString(deterministic=True)


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder, or a `gs://` URL, holds a prepared set."""
    return size_of(f"{folder}/{SET_FILE}") is not None


def read_set(folder: str | Path) -> PreparedSet:
    """What `prepared.json` says. Raises `DataError` when it cannot be read or is of another version."""
    try:
        values = json.loads(read_bytes(f"{folder}/{SET_FILE}"))
        if values.get("format") != FORMAT:
            raise DataError(
                f"{folder}/{SET_FILE}: format {values.get('format')}, but this version of hdc-keras reads {FORMAT}. "
                "Prepare the set anew."
            )
        size = values["size"]
        return PreparedSet(**values | {"size": tuple(size) if isinstance(size, list) else size})
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{folder}/{SET_FILE}: cannot be read ({error}).") from error


def read_indexes(folder: str | Path, prepared: PreparedSet) -> dict[int, dict[str, Any]]:
    """The indexes of the shards that are there, by number. Raises `DataError` for one that cannot be read."""
    indexes = {}
    for number in range(prepared.shards):
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
    """Where the frames of a video of an index are."""
    return StoredVideo(shard, entry["offset"], entry["size"], entry["frames"], entry["rate"])


def read_prepared(folder: str | Path) -> tuple[list[VideoRecord], list[dict[str, Any]]]:
    """The videos of a prepared set, and what is known of those that could not be prepared.

    Raises:
        DataError: shards are missing, are not as long as they were written, or have an index that cannot be read.
    """
    prepared = read_set(folder)
    indexes = read_indexes(folder, prepared)
    missing = [number for number in range(prepared.shards) if number not in indexes]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {prepared.shards} shards are missing, the first of them "
            f"{prepared.shard_name(missing[0])}. Run `hdc-keras prepare` with the same options again, all parts of it."
        )
    for number, index in indexes.items():
        shard = f"{folder}/{prepared.shard_name(number)}"
        size = size_of(shard) or 0
        if size != index["bytes"]:
            raise DataError(
                f"{shard}: is {size:,} bytes long, and was written with {index['bytes']:,}. Copy it again, or remove "
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
        )
        for number, index in indexes.items()
        for video in index["videos"]
    ]
    if not records:
        raise DataError(f"{folder}: none of the {prepared.videos} videos could be prepared; see report.json there.")
    return records, [failure for index in indexes.values() for failure in index["failed"]]


def read_frames(stored: StoredVideo, indices: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the frames at `indices` of a stored video, without TensorFlow; `pipeline` does it in a graph.

    Args:
        stored: where they are.
        indices: frame numbers, any integer shape; one may come more than once.
        size: (height, width) of the result in pixels; the stored size when `None`.

    Returns:
        `indices.shape + (height, width, 3)` uint8, RGB.

    Raises:
        VideoDecodeError: the shard cannot be read there, or a frame is damaged.
    """
    indices = np.asarray(indices)
    try:
        data = read_bytes(stored.shard, stored.offset, stored.size)[_BEFORE:-_AFTER]
        jpegs = list(_feature_list(memoryview(data), FRAMES))
        if len(jpegs) != stored.frames:
            raise ValueError(f"holds {len(jpegs)} frames where its index says {stored.frames}")
        decoded = {position: _decode_jpeg(jpegs[position], size) for position in np.unique(indices).tolist()}
    except (OSError, ValueError, IndexError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken files
        where = f"{stored.shard}, byte {stored.offset}"
        raise VideoDecodeError(where, f"{error}. `hdc-keras prepare --verify` checks all of it") from error
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

    Walks the wire format of protocol buffers, so that reading needs neither TensorFlow nor generated classes: every
    message on the way down to the bytes (FeatureLists 2, entry 1, FeatureList 2, Feature 1, BytesList 1, bytes 1) is a
    field that says its length.
    """
    for lists in _fields(example, 2):
        for entry in _fields(lists, 1):
            if bytes(_field(entry, 1)) == name.encode():
                for feature in _fields(_field(entry, 2), 1):
                    yield _field(_field(feature, 1), 1)


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the contents of the fields of that number, all of which are of the type that says its length."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 != 2:
            raise ValueError("is no SequenceExample")
        size, place = _varint(message, place)
        if place + size > len(message):
            raise ValueError("is cut short")
        if tag >> 3 == number:
            yield message[place : place + size]
        place += size


def _field(message: memoryview, number: int) -> memoryview:
    content = next(_fields(message, number), None)
    if content is None:
        raise ValueError("is no SequenceExample of frames")
    return content


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
