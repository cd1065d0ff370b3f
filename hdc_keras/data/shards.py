"""Writes and reads prepared video sets: TFRecord shards of JPEG frames, each with an index.

A shard contains one `tf.train.SequenceExample` per video. JPEG frames are in the feature list `frames`; the context has
the fields of a `VideoRecord`, plus `height`, `width`, `frame_count`, `rate` and `frame_table` (`stored_frames`). The
index of a shard says at which byte each record begins, so that videos can be read in any order. It also lists the
videos that could not be decoded. A shard without an index is incomplete and ignored. A complete set also has one index
of all shards (`set_index`), which is faster to read.

A set is in a folder, or in an object store: all paths here may be URLs (`storage`).
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hdc_keras.data.decoding import FrameSize
from hdc_keras.data.records import StoredVideo, VideoRecord
from hdc_keras.data.remote import is_remote
from hdc_keras.data.set_index import SET_INDEX, read_index
from hdc_keras.data.storage import (
    parallel_reads,
    read_bytes,
    remove_leftovers,
    replacing,
    size_of,
    sizes_in,
    write_text,
)
from hdc_keras.data.stored_frames import FOOTER_BYTES, FRAMES, HEADER_BYTES, TABLE, read_jpegs, table_of
from hdc_keras.errors import DataError, VideoDecodeError
from hdc_keras.files import digest

FORMAT = 1
SET_FILE = "prepared.json"
LABEL_PREFIX = "label/"
# Corrects moments that rounding put just before their frame. In frames.
_ROUNDING = 1e-6


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


def write_shard(shard: str | Path, videos: Iterable[tuple[VideoRecord, EncodedVideo | str]]) -> dict[str, Any]:
    """Write a shard, then its index, both atomically.

    No other process may write this shard to a local folder at the same time: temporary files that a killed process left
    are removed.

    Args:
        shard: path or URL of the shard.
        videos: each with its frames, or with the reason why it could not be decoded.

    Returns:
        The index. It is not written if another process has replaced the shard in a store, and so writes its index.
    """
    shard = str(shard)
    index_file = index_path(shard)
    remove_leftovers(shard)
    remove_leftovers(index_file)
    with replacing(shard) as temporary:
        index = _write_records(temporary, videos)
        index["sha256"] = digest(temporary)
    if is_remote(shard) and size_of(shard) != index["bytes"]:
        # Without locks, another process has written the shard meanwhile, in which another video may have failed.
        return index
    write_text(index_file, json.dumps(index, indent=1))
    return index


def _write_records(file: Path, videos: Iterable[tuple[VideoRecord, EncodedVideo | str]]) -> dict[str, Any]:
    """Write the records of a shard, and return its index except for the checksum."""
    import tensorflow as tf

    index: dict[str, Any] = {"videos": [], "failed": []}
    offset = 0
    with _as_os_error(tf.errors.OpError), tf.io.TFRecordWriter(str(file)) as writer:
        for record, video in videos:
            about = {"path": record.path, "video_id": record.video_id, "labels": dict(record.labels)} | {
                "split": record.split,
                "group": record.group,
                **({"segment": list(record.segment)} if record.segment else {}),
            }
            if isinstance(video, str):
                index["failed"].append(about | {"cause": video})
                continue
            table = table_of(video.frames)
            data = _serialised(record, video, table)
            writer.write(data)
            size = HEADER_BYTES + len(data) + FOOTER_BYTES
            height, width = video.size
            stored = {"offset": offset, "size": size, "frames": len(video.frames), "rate": video.rate}
            stored["table"] = HEADER_BYTES + data.index(table)
            index["videos"].append(about | stored | {"height": height, "width": width})
            offset += size
    return index | {"bytes": offset}


@contextmanager
def _as_os_error(kind: type[Exception]) -> Iterator[None]:
    """Turn TensorFlow's errors of writing into those of Python."""
    try:
        yield
    except kind as error:
        raise OSError(getattr(error, "message", str(error))) from error


def _serialised(record: VideoRecord, video: EncodedVideo, table: bytes) -> bytes:
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
    context[TABLE].bytes_list.value.append(table)
    frames = example.feature_lists.feature_list[FRAMES].feature
    for jpeg in video.frames:
        frames.add().bytes_list.value.append(jpeg)
    # The context is an unordered map. Deterministic serialisation gives the same bytes for the same video, with the
    # context before the frames.
    return example.SerializeToString(deterministic=True)


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder or its URL contains a prepared set."""
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


def each_index(
    folder: str | Path, prepared: PreparedSet, numbers: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each of these numbers, of complete shards, with the index of its shard.

    Raises:
        DataError: an index cannot be read.
    """
    folder = str(folder)

    def read(number: int) -> tuple[int, dict[str, Any]]:
        path = index_path(f"{folder}/{prepared.shard_name(number)}")
        try:
            return number, json.loads(read_bytes(path))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}). Remove it and run `hdc-keras prepare` again."
            ) from error

    at_once = parallel_reads(folder)
    with ThreadPoolExecutor(at_once) as threads:
        for first in range(0, len(numbers), 8 * at_once):  # few at once: the indexes of millions of videos are large
            yield from threads.map(read, numbers[first : first + 8 * at_once])


def complete_shards(folder: str | Path, prepared: PreparedSet, numbers: Iterable[int]) -> list[int]:
    """Which of these shards are complete, that is, have an index."""
    names = {number: index_path(prepared.shard_name(number)) for number in numbers}
    if not is_remote(str(folder)) or len(names) == 1:  # of a large set, often only a few shards are asked for
        return [number for number, name in names.items() if size_of(f"{folder}/{name}") is not None]
    present = sizes_in(str(folder))
    return [number for number, name in names.items() if name in present]


def stored_video(shard: str, entry: dict[str, Any]) -> StoredVideo:
    """Location of the frames of a video, from its entry in the index of a shard."""
    return StoredVideo(shard, entry["offset"], entry["size"], entry["frames"], entry["rate"], entry.get("table", 0))


def read_prepared(folder: str | Path) -> tuple[list[VideoRecord], list[dict[str, Any]]]:
    """Read the videos of a prepared set, and the index entries of videos that could not be prepared.

    Raises:
        DataError: a shard is missing, its size differs from the index, or an index cannot be read.
    """
    folder = str(folder).rstrip("/")
    prepared = read_set(folder)
    sizes = sizes_in(folder)
    shards = [f"{folder}/{prepared.shard_name(number)}" for number in range(prepared.shards)]
    if SET_INDEX in sizes:
        records, failed, written = read_index(f"{folder}/{SET_INDEX}", prepared.listing, shards)
    else:
        records, failed, written = _read_every_index(folder, prepared, shards)
    for shard, expected in zip(shards, written, strict=True):
        size = sizes.get(shard.rpartition("/")[2], 0)
        if size is not None and size != expected:
            raise DataError(
                f"{shard}: is {size:,} bytes long, but {expected:,} bytes were written. Copy it again, or remove "
                f"{index_path(shard)} and run `hdc-keras prepare` again."
            )
    if not records:
        raise DataError(f"{folder}: none of the {prepared.videos} videos could be prepared; see report.json there.")
    return records, failed


def _read_every_index(
    folder: str, prepared: PreparedSet, shards: Sequence[str]
) -> tuple[list[VideoRecord], list[dict[str, Any]], list[int]]:
    """The videos, the failed ones, and the bytes of each shard, from the indexes of the shards."""
    complete = complete_shards(folder, prepared, range(prepared.shards))
    missing = sorted({*range(prepared.shards)}.difference(complete))
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {prepared.shards} shards are missing; the first is "
            f"{prepared.shard_name(missing[0])}. Run `hdc-keras prepare` again with the same options, for all parts."
        )
    indexes = dict(each_index(folder, prepared, complete))
    records = [
        VideoRecord(
            video["path"],
            video["video_id"],
            video["labels"],
            video["split"],
            video["group"],
            stored_video(shards[number], video),
            tuple(video["segment"]) if "segment" in video else None,
        )
        for number, index in indexes.items()
        for video in index["videos"]
    ]
    failed = [failure for index in indexes.values() for failure in index["failed"]]
    return records, failed, [index["bytes"] for index in indexes.values()]


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
    jpegs, places = needed_jpegs(stored, indices)
    with _damage_named(stored):
        return np.stack([_decode_jpeg(jpeg, size) for jpeg in jpegs])[places]


def needed_jpegs(stored: StoredVideo, indices: np.ndarray) -> tuple[list[memoryview], np.ndarray]:
    """The JPEGs of the frames at `indices`, each once, and the place of every index among them, in the same shape.

    Raises:
        VideoDecodeError: the record cannot be read, or is damaged.
    """
    needed, places = np.unique(indices, return_inverse=True)
    with _damage_named(stored):
        return read_jpegs(stored, needed.tolist()), places.reshape(np.shape(indices))


@contextmanager
def _damage_named(stored: StoredVideo) -> Iterator[None]:
    """Turn errors of reading a record into a `VideoDecodeError` that names it."""
    try:
        yield
    except (OSError, ValueError, IndexError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken files.
        location = f"{stored.shard}, byte {stored.offset}"
        raise VideoDecodeError(location, f"{error}. `hdc-keras prepare --verify` checks the whole set") from error


def _decode_jpeg(jpeg: memoryview, size: tuple[int, int] | None) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        if size and (image.height, image.width) != size:
            shrinks = image.height >= size[0] and image.width >= size[1]
            filter_ = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
            return np.asarray(image.resize((size[1], size[0]), filter_))
        return np.asarray(image)
