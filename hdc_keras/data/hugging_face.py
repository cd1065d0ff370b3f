"""Sets of Hugging Face `datasets` with a column of videos, read without that package.

A saved set (`save_to_disk`) consists of Arrow files, a set of the Hub of Parquet files. Both hold the bytes of the
video files, where clips are decoded from.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hdc_keras.data.folders import files_below, splits_in_names, splits_named, with_suffixes
from hdc_keras.data.members import member_path
from hdc_keras.data.records import VideoSet, counted, is_label_column, records_of
from hdc_keras.data.tables import Row, checked_row
from hdc_keras.data.video_columns import arrow_table, video_columns
from hdc_keras.errors import DataError, VideoDecodeError

_PARQUET = ".parquet"
_SPLITS_FILE = "dataset_dict.json"
_STATE_FILE = "state.json"
_DESCRIPTION_FILE = "dataset_info.json"
_USUAL_COLUMN = "video"


@dataclass(frozen=True)
class _Part:
    """The rows of a file, without the bytes of the videos.

    Attributes:
        name: of the file, relative to the folder of the set.
        column: the column of videos.
        video_names: names of the video files, as far as the set has them.
        columns: labels, `split` and `group` as texts, by column.
    """

    name: str
    column: str
    video_names: list[str]
    columns: dict[str, list[str]]


def read_hugging_face(path: Path) -> VideoSet:
    """Read a set of Hugging Face `datasets` with a column of videos (`Video`: a struct of `bytes` and `path`).

    Labels are `label`, or several `label_NAME`, or, if there is neither, every column of the type `ClassLabel` by its
    name. Numbers of a `ClassLabel` become its names; -1, which stands for no label, and nulls become no label. `split`
    and `group` mean the same as in a manifest. Other columns are ignored.

    Splits are those of a saved `DatasetDict`, or words of the names of Parquet files or their folders
    (`train-00000-of-00001.parquet`). Ids are the names of the video files if all have one and they differ, otherwise
    FILE/ROW.

    Args:
        path: a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`; a folder of Parquet files, which
            may be in sub-folders; or one Parquet file.

    Raises:
        DataError: a file is missing or damaged, there is no column of videos or no telling which, or a value is wrong.
    """
    names, splits, kind = _files(path)
    folder = path.parent if path.is_file() else path
    try:
        parts = [_read_part(folder, name) for name in names]
    except VideoDecodeError as error:
        raise DataError(f"{error.path}: {error.cause}.") from error
    videos = sum(len(part.video_names) for part in parts)
    notes = [f"{kind}: {counted(names, 'file')} in {path}, {counted(range(videos), 'video')}"]
    columns = dict.fromkeys(column for part in parts for column in part.columns)
    if "split" not in columns:
        of_file, more = _splits(parts, splits)
        notes += more
        columns |= {"split": None} if of_file else {}
    else:
        of_file = {}
    if not any(map(is_label_column, columns)):
        notes.append("no labels: expected a column `label`, columns `label_NAME` or a column of the type ClassLabel")
    records = records_of(path, columns, _rows(parts, list(columns), of_file))
    if not records:
        raise DataError(f"{path}: contains no videos: its files have no rows.")
    return VideoSet(records, notes)


def is_hugging_face(folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder is a saved set, or some names of files in it are those of Parquet files with videos."""
    return _is_saved(folder) or any(_parquet_videos(folder / name) for name in with_suffixes(names, (_PARQUET,)))


def _is_saved(folder: Path) -> bool:
    return (folder / _SPLITS_FILE).exists() or all(
        (folder / name).exists() for name in (_STATE_FILE, _DESCRIPTION_FILE)
    )


def _parquet_videos(file: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return video_columns(pq.read_schema(file))
    except (pa.ArrowException, OSError, UnicodeDecodeError):  # another file
        return []


def _files(path: Path) -> tuple[list[str], dict[str, str], str]:
    """Names of the files relative to the folder, the name of the split of each, if the set has them, and the kind."""
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder. Expected a saved set, or Parquet files with a column of videos."
        )
    if path.is_file():
        return [path.name], {}, "Parquet with videos"
    if (path / _SPLITS_FILE).exists():
        splits = _list_in(path / _SPLITS_FILE, "splits")
        split_of = {f"{split}/{name}": split for split in splits for name in _saved_files(path / split)}
        return list(split_of), split_of, "saved DatasetDict"
    if _is_saved(path):
        return _saved_files(path), {}, "saved Dataset"
    names = files_below(path, (_PARQUET,))
    if not names:
        raise DataError(
            f"{path}: no Parquet files found, and no saved set, which has {_STATE_FILE} and {_DESCRIPTION_FILE}, or "
            f"{_SPLITS_FILE}."
        )
    return names, {}, "Parquet with videos"


def _saved_files(folder: Path) -> list[str]:
    listed = _list_in(folder / _STATE_FILE, "_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed]
    for name in names:
        if not isinstance(name, str) or not (folder / name).is_file():
            raise DataError(f"{folder / _STATE_FILE}: lists {name}, which is missing. Copy the folder again.")
    return [str(name) for name in names]


def _list_in(file: Path, key: str) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Copy the folder again.") from error
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{file}: expected an object with a list `{key}`, as `datasets` writes it.")
    return content[key]


def _read_part(folder: Path, name: str) -> _Part:
    """Read the columns of a file that are used. Raises `VideoDecodeError` if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / name
    try:
        if file.suffix.lower() == _PARQUET:
            with pq.ParquetFile(file) as opened:
                column, used = _used_columns(file, opened.schema_arrow)
                # One field of the struct: the bytes of the videos are not read.
                return _part(name, column, opened.schema_arrow, opened.read([f"{column}.path", *used]))
        with arrow_table(str(file)) as (table, _):
            column, used = _used_columns(file, table.schema)
            return _part(name, column, table.schema, table.select([column, *used]))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise VideoDecodeError(str(file), f"cannot be read ({' '.join(str(error).split())})") from error


def _used_columns(file: Path, schema: Any) -> tuple[str, list[str]]:
    """The column of videos, and those with labels, splits and groups."""
    features = _features(schema)
    known = [name for name in video_columns(schema) if features.get(name, {}).get("_type", "Video") == "Video"]
    if not known:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{file}: has no column of videos, which is a struct of `bytes` and `path`. Columns: {columns}. "
            "`dataset.cast_column(NAME, datasets.Video())` makes one of a column of bytes or paths."
        )
    if len(known) > 1 and _USUAL_COLUMN not in known:
        raise DataError(
            f"{file}: has several columns of videos ({', '.join(known)}). Rename the one to use to `{_USUAL_COLUMN}`."
        )
    column = _USUAL_COLUMN if _USUAL_COLUMN in known else known[0]
    labels = [name for name in schema.names if is_label_column(name)] or [
        name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"
    ]
    return column, labels + [name for name in ("split", "group") if name in schema.names]


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` notes about the columns; empty if the file was written by something else."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: about for name, about in features.items() if isinstance(about, dict)}


def _part(name: str, column: str, schema: Any, table: Any) -> _Part:
    import pyarrow.compute as pc

    features = _features(schema)
    paths = pc.struct_field(table.column(column), "path").to_pylist()
    columns = {
        used if is_label_column(used) or used in ("split", "group") else f"label_{used}": _texts(
            f"{name}, column `{used}`", table.column(used), features.get(used, {})
        )
        for used in table.column_names
        if used != column
    }
    return _Part(name, column, [PurePosixPath(path or "").name for path in paths], columns)


def _texts(place: str, values: Any, about: dict[str, Any]) -> list[str]:
    import pyarrow as pa

    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
        raise DataError(f"{place}: expected texts or numbers as labels, splits and groups. Received: {values.type}")
    names = about.get("names") if about.get("_type") == "ClassLabel" else None
    texts = []
    for value in values.to_pylist():
        if value is None or (names is not None and value == -1):
            texts.append("")
        elif names is not None and isinstance(value, int) and 0 <= value < len(names):
            texts.append(str(names[value]))
        else:
            texts.append(str(value).strip())
    return texts


def _splits(parts: list[_Part], of_dict: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The split of each file, and notes."""
    counts = {part.name: len(part.video_names) for part in parts}
    if not of_dict:
        return splits_in_names(counts)
    of_split: Counter[str] = Counter()
    for name, count in counts.items():
        of_split[of_dict[name]] += count
    splits, notes = splits_named(of_split, "the DatasetDict", "there is no split test")
    if not splits:
        return {}, [f"no splits are taken from the DatasetDict, because not all of {', '.join(of_split)} are known"]
    return {name: splits[split] for name, split in of_dict.items()}, notes


def _rows(parts: list[_Part], columns: list[str], of_file: dict[str, str]) -> Iterator[tuple[str, Row]]:
    """A row for each video, with its place."""
    names = [name for part in parts for name in part.video_names]
    are_ids = all(names) and len(set(names)) == len(names)
    for part in parts:
        for row, name in enumerate(part.video_names):
            values = {column: part.columns[column][row] if column in part.columns else "" for column in columns}
            values |= {
                "path": member_path(part.name, f"{part.column}/{row}"),
                "video_id": name if are_ids else f"{part.name.rpartition('.')[0]}/{row}",
            }
            values |= {"split": of_file[part.name]} if of_file else {}
            yield f"{part.name}, row {row}", checked_row(row, values)
