"""The index of a complete prepared set: one Parquet file with a row for each video.

It says what the indexes of all shards say, and is read in seconds where those, a file for each shard, take minutes.
`prepare` writes it when the last shard is complete. Sets of version 0.1.0 do not have it.
"""

import gc
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hdc_keras.data.records import StoredVideo, VideoRecord
from hdc_keras.data.remote import is_remote
from hdc_keras.data.storage import read_bytes
from hdc_keras.errors import DataError

SET_INDEX = "index.parquet"
_FORMAT = 1
# Videos that are written and read at a time, which limits memory.
_ROWS = 1 << 17
# What is only known of videos that were decoded; 0 for the others.
_NUMBERS = {
    "offset": "int64",
    "size": "int64",
    "table": "int32",
    "frames": "int32",
    "rate": "float64",
    "height": "int32",
    "width": "int32",
}


@contextmanager
def index_writer(file: Path, listing: str) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """Yield a function that adds the index of a shard, to be called with its number and index, in order of the numbers.

    Args:
        file: the Parquet file to write.
        listing: `PreparedSet.listing` of the set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("shard", pa.int32()),
            *((name, pa.string()) for name in ("video_id", "path", "labels", "split", "group")),
            *((name, pa.float64()) for name in ("start", "end")),
            *((name, pa.type_for_alias(kind)) for name, kind in _NUMBERS.items()),
            ("cause", pa.string()),
        ],
        metadata={"format": str(_FORMAT), "listing": listing},
    )
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def add(number: int, index: dict[str, Any]) -> None:
            rows.extend(_row(number, video) for video in [*index["videos"], *index["failed"]])
            if len(rows) >= _ROWS:
                flush()

        yield add
        flush()


def _row(shard: int, video: dict[str, Any]) -> dict[str, Any]:
    start, end = video.get("segment", (None, None))
    texts = {name: video[name] for name in ("video_id", "path", "split", "group")}
    numbers = {name: video.get(name, 0) for name in _NUMBERS}
    # Labels are text, because videos may have different ones. The order of the names counts: the first is the main one.
    return (
        {"shard": shard, "labels": json.dumps(video["labels"]), "start": start, "end": end}
        | texts
        | numbers
        | {"cause": video.get("cause")}
    )


def same_index(content: bytes, other: bytes) -> bool:
    """Whether two Parquet files hold the same index, whatever version of pyarrow wrote them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(io.BytesIO(content)).equals(pq.read_table(io.BytesIO(other)), check_metadata=True)
    except (OSError, ValueError, pa.ArrowException):
        return False


def read_index(
    path: str, listing: str, shards: Sequence[str]
) -> tuple[list[VideoRecord], list[dict[str, Any]], list[int]]:
    """Read the index of a set.

    Args:
        path: path or URL of the index.
        listing: `PreparedSet.listing` of the set.
        shards: path of every shard.

    Returns:
        The videos, what is known of videos that could not be prepared, and the number of bytes of each shard.

    Raises:
        DataError: the index cannot be read, or belongs to another set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    records: list[VideoRecord] = []
    failed: list[dict[str, Any]] = []
    written = np.zeros(len(shards), np.int64)
    advice = "Remove it and run `hdc-keras prepare` again."
    try:
        source = io.BytesIO(read_bytes(path)) if is_remote(path) else path
        with pq.ParquetFile(source, read_dictionary=["labels", "split", "group"]) as file, _without_collection():
            facts = file.schema_arrow.metadata or {}
            if (facts.get(b"format"), facts.get(b"listing")) != (str(_FORMAT).encode(), listing.encode()):
                raise DataError(f"{path}: does not belong to the set of prepared.json beside it. {advice}")
            for batch in file.iter_batches(_ROWS):
                _add_rows(batch, shards, records, failed, written)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error}). {advice}") from error
    return records, failed, written.tolist()


def _add_rows(
    batch: Any, shards: Sequence[str], records: list[VideoRecord], failed: list[dict[str, Any]], written: np.ndarray
) -> None:
    """Add the videos of some rows."""
    good = batch.filter(batch["cause"].is_null())
    shard = good["shard"].to_numpy()
    offset, size = good["offset"].to_numpy(), good["size"].to_numpy()
    np.maximum.at(written, shard, offset + size)
    numbers = [good[name].to_numpy().tolist() for name in ("frames", "rate", "table")]
    shard_paths = [shards[number] for number in shard.tolist()]
    stored = map(StoredVideo, shard_paths, offset.tolist(), size.tolist(), *numbers)
    labels = _shared(good["labels"], json.loads)
    split, group = (_shared(good[name], str) for name in ("split", "group"))
    records += map(
        VideoRecord, _texts(good["path"]), _texts(good["video_id"]), labels, split, group, stored, _segments(good)
    )
    for row in batch.filter(batch["cause"].is_valid()).to_pylist():
        segment = {} if row["start"] is None else {"segment": [row["start"], row["end"]]}
        kept = {name: row[name] for name in ("path", "video_id", "split", "group", "cause")}
        failed.append(kept | {"labels": json.loads(row["labels"])} | segment)


def _texts(column: Any) -> list[str]:
    return column.to_numpy(zero_copy_only=False).tolist()


def _shared(column: Any, read: Callable[[str], Any]) -> list[Any]:
    """The values of a column with repeated texts; equal ones are one object, which saves time and memory."""
    values = [*map(read, column.dictionary.to_pylist()), None]
    return [values[code] for code in column.indices.fill_null(-1).to_numpy().tolist()]


def _segments(rows: Any) -> list[tuple[float, float] | None]:
    if rows["start"].null_count == len(rows):
        return [None] * len(rows)
    bounds = zip(rows["start"].to_pylist(), rows["end"].to_pylist(), strict=True)
    return [None if start is None else (start, end) for start, end in bounds]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Leave out garbage collection, which would look through millions of new objects again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
