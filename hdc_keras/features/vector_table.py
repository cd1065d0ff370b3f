"""Vectors of videos from any encoder: a Parquet file with one row per video."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hdc_keras.data.records import SPLITS, VideoRecord, counted, divided_groups, label_name_problem, segment_of
from hdc_keras.errors import DataError, VideoDecodeError
from hdc_keras.features.embedding_table import METADATA_KEY, SEGMENT_COLUMNS
from hdc_keras.features.video_features import Arrays, VideoFeatures

_LABEL_PREFIX = "label_"
_TEXT_COLUMNS = ("video_id", "path", "split", "group")


@dataclass(frozen=True)
class VectorTable:
    """What a Parquet file says about videos.

    Attributes:
        file: the file.
        records: the videos, in the order of the rows.
        arrays: (videos, channels) float32 by column.
        has_ids: whether there is a column `video_id`; without one, ids are the paths as they are in the file.
        made_from: what `hdc-keras embed` wrote about the vectors; empty for a file from elsewhere.
    """

    file: Path
    records: list[VideoRecord]
    arrays: Arrays
    has_ids: bool
    made_from: Mapping[str, Any]

    def features_of(self, records: Sequence[VideoRecord]) -> VideoFeatures:
        """The vectors of videos. A video without a row counts as failed.

        Rows are found by `video_id` or, if the file has no such column, by the path and the segment of the video.
        """
        rows = {self._key(one): row for row, one in enumerate(self.records)}
        row_of = {one.video_id: rows.get(self._key(one)) for one in records}
        found = [one for one in records if row_of[one.video_id] is not None]
        taken = np.array([row_of[one.video_id] for one in found], int)
        failed = {
            one.video_id: VideoDecodeError(one.path, f"no row in {self.file}")
            for one in records
            if row_of[one.video_id] is None
        }
        return VideoFeatures(found, {name: a[taken] for name, a in self.arrays.items()}, len(records), failed)

    def _key(self, record: VideoRecord) -> object:
        return record.video_id if self.has_ids else (_absolute(record.path), record.segment)


def read_vector_table(file: Path) -> VectorTable:
    """Read a Parquet file with a row per video.

    Columns: `video_id` or `path`, or both; vectors (lists of numbers of one length, without nulls), one or more columns
    of any name; and, if there are any, `label` or several `label_NAME`, `split` (train, val, test), `group`, and
    `start` and `end` in seconds, for a part of a file. Other columns are ignored. `hdc-keras embed` writes such files.

    Raises:
        DataError: the file cannot be read or lacks a column, or a value is not valid.
    """
    if not file.is_file():
        raise DataError(f"{file}: {'is a folder' if file.is_dir() else 'no such file'}. Expected a Parquet file.")
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as a Parquet file ({str(error).splitlines()[0]}).") from error
    names = table.column_names
    if not {"video_id", "path"} & set(names):
        raise DataError(f"{file}: expected a column `video_id` or `path`. Received: {', '.join(names) or 'no columns'}")
    vectors = [name for name in names if _is_vector(table.schema.field(name).type)]
    if not vectors:
        raise DataError(
            f"{file}: expected a column of vectors, which are lists of numbers. Received: {', '.join(names)}"
        )
    if not table.num_rows:
        raise DataError(f"{file}: has no rows. Expected one row per video.")
    texts = {name: _texts(file, table, name) for name in _TEXT_COLUMNS if name in names}
    labels = {"label": "label"} if "label" in names else _named_labels(names)
    values = {name: _texts(file, table, column) for column, name in labels.items()}
    for name in values:
        if problem := label_name_problem(name):
            raise DataError(f"{file}: {problem}.")
    ids = texts.get("video_id") or texts["path"]
    for row, one in enumerate(ids, 1):
        if not one:
            raise DataError(f"{file}, row {row}: there is no `{'video_id' if 'video_id' in texts else 'path'}`.")
    segments = _segments(file, table)
    keys = ids if "video_id" in texts else list(zip(ids, segments, strict=True))
    repeated, count = Counter(keys).most_common(1)[0]
    if count > 1:
        name = repeated if isinstance(repeated, str) else repeated[0]
        raise DataError(f"{file}: several rows are about `{name}`. Expected one row per video.")
    unknown = next((split for split in texts.get("split", ()) if split not in (None, *SPLITS)), None)
    if unknown:
        raise DataError(f"{file}: the split `{unknown}` is unknown. Expected {', '.join(SPLITS)}, or null.")
    nothing: list[str | None] = [None] * table.num_rows
    columns = zip(ids, texts.get("path", ids), texts.get("split", nothing), texts.get("group", nothing), strict=True)
    records = [
        VideoRecord(
            path,
            str(one),
            {name: label for name in values if (label := values[name][row])},
            split,
            group,
            segment=segments[row],
        )
        for row, (one, path, split, group) in enumerate(columns)
    ]
    if any(record.split for record in records) and not all(record.split for record in records):
        raise DataError(f"{file}: some rows have a split and others do not. Give every row a split, or none.")
    for divided, splits in divided_groups(records):
        raise DataError(f"{file}: group `{divided}` is in several splits ({', '.join(splits)}).")
    arrays = {name: _vectors(file, table.column(name), name) for name in vectors}
    return VectorTable(file, records, arrays, "video_id" in texts, _made_from(table.schema))


def _segments(file: Path, table: pa.Table) -> list[tuple[float, float] | None]:
    """The part of its file that each video is, as `hdc-keras embed` writes it."""
    if not set(SEGMENT_COLUMNS) <= set(table.column_names):
        return [None] * table.num_rows
    bounds = zip(*(_texts(file, table, name) for name in SEGMENT_COLUMNS), strict=True)
    found = []
    for row, (start, end) in enumerate(bounds, 1):
        try:
            found.append(segment_of(start or "", end or ""))
        except ValueError as error:
            raise DataError(f"{file}, row {row}: {error}") from error
    return found


def _named_labels(names: Sequence[str]) -> dict[str, str]:
    return {name: name.removeprefix(_LABEL_PREFIX) for name in names if name.startswith(_LABEL_PREFIX)}


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _texts(file: Path, table: pa.Table, name: str) -> list[Any]:
    """A column as texts; empty texts, nulls and NaN are `None`."""
    try:
        column = table.column(name)
        if pa.types.is_floating(column.type):  # as pandas writes missing values
            column = pc.if_else(pc.is_nan(column), None, column)
        values = pc.cast(column, pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise DataError(
            f"{file}: the column `{name}` must hold texts. Received: {table.schema.field(name).type}"
        ) from error
    return [value or None for value in values]


def _vectors(file: Path, column: pa.ChunkedArray, name: str) -> np.ndarray:
    """(videos, channels) float32."""
    lengths = pc.list_value_length(column).to_numpy()
    first = lengths[0]
    for row, length in enumerate(lengths, 1):
        if not length or length != first:  # null is NaN here, which differs from everything
            raise DataError(
                f"{file}, row {row}: the vector `{name}` has {_count(length)}. Expected as many numbers in every row, "
                f"one or more; row 1 has {_count(first)}."
            )
    flat = pc.list_flatten(column)
    if flat.null_count:
        row = int(np.flatnonzero(pc.is_null(flat).to_numpy(zero_copy_only=False))[0]) // int(first) + 1
        raise DataError(f"{file}, row {row}: the vector `{name}` contains a null. Expected numbers.")
    values = flat.to_numpy().astype(np.float32).reshape(len(column), int(first))
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{file}, row {int(finite.argmin()) + 1}: the vector `{name}` has numbers that are not finite. Leave the "
            "video out, or compute its vector again."
        )
    return values


def _count(length: float) -> str:
    return "no value" if np.isnan(length) else counted(range(int(length)), "number")


def _made_from(schema: pa.Schema) -> dict[str, Any]:
    """What `hdc-keras embed` wrote; empty for other metadata under the same key."""
    try:
        found = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except ValueError:
        return {}
    return (
        found if isinstance(found, dict) and {"run", "checkpoint", "weights_sha256", "format"} <= found.keys() else {}
    )


def _absolute(path: str) -> str:
    return str(Path(path).resolve())
