"""Columns of videos in Parquet and Arrow files, as Hugging Face `datasets` stores them: structs of `bytes` and `path`.

`bytes` holds a video file. If it is null, `path` names one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hdc_keras.errors import VideoDecodeError

# Number of files whose rows are cached (our choice; 16 bytes a row).
_CACHE_SIZE = 4096
# Pages of a Parquet file are read in pieces of this size, so that no whole row group is in memory.
_BUFFER_BYTES = 2**20
_ROW = re.compile(r"0|[1-9][0-9]*")
_ARROW_FILE_MAGIC = b"ARROW1"


def row_of(path: str, name: str) -> tuple[str, int]:
    """Read COLUMN/ROW. Raises `VideoDecodeError` if a name is not of this kind."""
    column, _, row = name.rpartition("/")
    if not column or not _ROW.fullmatch(row):
        raise VideoDecodeError(path, f"expected FILE::COLUMN/ROW, where 0 is the first row. Received: {name}")
    return column, int(row)


def rows_in(file: str, column: str) -> int:
    """Number of rows of a file with a column of videos. Raises `VideoDecodeError`, or `OSError` if there is no file."""
    if file.lower().endswith(".parquet"):
        return _row_groups(file, column)[-1]
    return len(_arrow_ranges(file, column)[0])


def parquet_row(file: str, column: str, row: int) -> bytes | str:
    """The bytes of a video in a Parquet file, or the path that its row names. Reads the row's group up to the row.

    Raises:
        VideoDecodeError: there is no such column or row, or the file is damaged.
        OSError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ends = _row_groups(file, column)
    group = int(np.searchsorted(ends, row, side="right"))
    if group == len(ends):
        raise VideoDecodeError(f"{file}::{column}/{row}", f"there is no such row; the file has {ends[-1]}")
    place = row - (ends[group - 1] if group else 0)
    try:
        with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as table:
            batches = table.iter_batches(batch_size=1, row_groups=[group], columns=[column], use_threads=False)
            value = next(islice(batches, place, None)).column(0)[0].as_py() or {}
    except (pa.ArrowException, OSError) as error:
        _raise_missing(error)
        raise VideoDecodeError(f"{file}::{column}/{row}", f"cannot be read ({_one_line(error)})") from error
    return _content(f"{file}::{column}/{row}", value.get("bytes"), value.get("path"))


def arrow_range(file: str, column: str, row: int) -> tuple[int, int] | str:
    """First byte and number of bytes of a video in an Arrow file, or the path that its row names.

    Raises:
        VideoDecodeError: there is no such column or row, or the file is damaged or compressed.
        OSError: the file cannot be read.
    """
    starts, sizes = _arrow_ranges(file, column)
    if row >= len(starts):
        raise VideoDecodeError(f"{file}::{column}/{row}", f"there is no such row; the file has {len(starts)}")
    if sizes[row] >= 0:
        return int(starts[row]), int(sizes[row])
    with arrow_table(file) as (table, _):
        path = (table.column(column)[row].as_py() or {}).get("path")
    found = _content(f"{file}::{column}/{row}", None, path)
    assert isinstance(found, str)
    return found


def _content(place: str, content: bytes | None, path: str | None) -> bytes | str:
    if content is not None:
        return content
    if not path:
        raise VideoDecodeError(place, "the row is empty")
    return path


@contextmanager
def arrow_table(file: str) -> Iterator[tuple[Any, int]]:
    """The table of an Arrow file, mapped into memory and not read; and the address of the file's first byte there.

    Raises:
        VideoDecodeError: the file is damaged.
        OSError: it cannot be read.
    """
    import pyarrow as pa

    with _addresses_for(Path(file).stat().st_size), pa.memory_map(file) as mapped:
        try:
            start = mapped.read_buffer()
            mapped.seek(0)
            is_file = start.size > len(_ARROW_FILE_MAGIC) and start[: len(_ARROW_FILE_MAGIC)] == _ARROW_FILE_MAGIC
            table = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped).read_all()
            # Otherwise a damaged file crashes the process. This reads no bytes of videos, only where they lie.
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise VideoDecodeError(file, f"is damaged or not an Arrow file ({_one_line(error)})") from error
        yield table, start.address


@contextmanager
def _addresses_for(size: int) -> Iterator[None]:
    """Raise this process' limit on its address space, if it has one, by the size of a file that is mapped: decoding
    processes have one to limit memory, which a mapping does not take."""
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        yield
        return
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        yield
        return
    raised = limit + size if hard_limit == resource.RLIM_INFINITY else min(limit + size, hard_limit)
    resource.setrlimit(resource.RLIMIT_AS, (raised, hard_limit))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))


@lru_cache(maxsize=_CACHE_SIZE)
def _row_groups(file: str, column: str) -> list[int]:
    """The number of rows up to the end of each row group of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            _require_videos(file, column, table.schema_arrow)
            counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        _raise_missing(error)
        raise VideoDecodeError(file, f"is damaged or not a Parquet file ({_one_line(error)})") from error
    return np.cumsum(counts or [0]).tolist()


@lru_cache(maxsize=_CACHE_SIZE)
def _arrow_ranges(file: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) int64 first byte and number of bytes of each video in an Arrow file; -1 bytes for a null."""
    import pyarrow as pa

    length = Path(file).stat().st_size
    starts, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    with arrow_table(file) as (table, base):
        _require_videos(file, column, table.schema)
        for chunk in table.column(column).chunks:
            content = chunk.field("bytes")
            _, offsets, data = content.buffers()
            kind = np.int64 if pa.types.is_large_binary(content.type) else np.int32
            bounds = np.frombuffer(offsets, kind, content.offset + len(content) + 1).astype(np.int64)[content.offset :]
            is_null = np.asarray(content.is_null()) | np.asarray(chunk.is_null())
            starts.append(bounds[:-1] + (data.address - base if data is not None else 0))
            sizes.append(np.where(is_null, -1, np.diff(bounds)))
    first, count = np.concatenate(starts), np.concatenate(sizes)
    stored = count >= 0
    if np.any((first[stored] < 0) | (first[stored] + count[stored] > length)):
        raise VideoDecodeError(file, "is compressed, so single videos cannot be read. Save it without compression")
    return first, count


def _require_videos(file: str, column: str, schema: Any) -> None:
    try:
        known = video_columns(schema)
    except UnicodeDecodeError as error:
        raise VideoDecodeError(file, f"is damaged: the name of a column is not UTF-8 ({_one_line(error)})") from error
    if column not in known:
        listed = ", ".join(known) or "none"
        raise VideoDecodeError(file, f"has no column of videos `{column}`. Columns of videos: {listed}")


def video_columns(schema: Any) -> list[str]:
    """The columns of a pyarrow schema that may hold videos: structs of binary `bytes` and `path`."""
    import pyarrow as pa

    return [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and {"bytes", "path"} <= {inner.name for inner in field.type}
        and field.type.field("bytes").type in (pa.binary(), pa.large_binary())
    ]


def _raise_missing(error: BaseException) -> None:
    """Raise an error of the operating system again. pyarrow's errors of this type about damage have no number."""
    if isinstance(error, OSError) and error.errno:
        raise error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
