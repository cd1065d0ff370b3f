"""Rows of CSV, JSONL and Parquet files. Every row that cannot be read is reported with its line and the cause."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hdc_keras.errors import DataError

# Control characters, and the surrogates that stand for bytes that are not UTF-8.
UNUSABLE_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# The delimiter is the first one that separates the names in the header.
_DELIMITERS = (",", ";", "\t")
_HEADER_CHARACTERS = 2**20
_CHARACTERS_SHOWN = 80


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        line: number of the line on which it begins; in a Parquet file, of the row.
        values: text by column, without spaces around it.
        problem: why the row cannot be read, which leaves `values` empty; otherwise empty.
    """

    line: int
    values: dict[str, str]
    problem: str = ""


class Table(NamedTuple):
    """The columns that are used, and the rows."""

    columns: list[str]
    rows: Iterable[Row]


def read_table(path: Path, required: str, is_used: Callable[[str], bool]) -> Table:
    """Read a CSV file with a header, separated by commas, semicolons or tabs, a JSONL file with an object per line, or
    a Parquet file.

    Args:
        path: the file.
        required: a column that it must have.
        is_used: whether a column of that name is used. Others are ignored, and may hold anything.

    Raises:
        DataError: the file cannot be read, its header lacks the required column, or repeats a column that is used.
    """
    try:
        readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
        return readers.get(path.suffix.lower(), _read_csv)(path, required, is_used)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def shown(text: str, characters: int = _CHARACTERS_SHOWN) -> str:
    """Text for a message: shortened, and with a mark in place of each character that cannot be printed."""
    short = text[:characters] + ("..." if len(text) > characters else "")
    return "".join(character if character.isprintable() else "\ufffd" for character in short)


def _read_csv(path: Path, required: str, is_used: Callable[[str], bool]) -> Table:
    with _open_csv(path) as file:
        header = file.readline(_HEADER_CHARACTERS).rstrip("\r\n")
    if UNUSABLE_CHARACTERS.search(header.replace("\t", "")):
        raise DataError(f"{path}, line 1: expected a text file in UTF-8 with a header. Received other bytes.")
    delimiter, columns = _split_header(path, header, required)
    if required not in columns:
        received = ", ".join(filter(None, columns)) or "nothing"
        raise DataError(f"{path}, line 1: expected a header with a `{required}` column. Received: {shown(received)}")
    repeated = [f"`{column}`" for column, count in Counter(columns).items() if count > 1 and is_used(column)]
    if repeated:
        raise DataError(f"{path}, line 1: expected each column once. Received more than one {', '.join(repeated)}.")
    used = {number: column for number, column in enumerate(columns) if is_used(column)}

    def rows() -> Iterator[Row]:
        with _open_csv(path) as file:
            reader = csv.reader(file, delimiter=delimiter)
            next(reader)
            while True:
                line = reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Row(line, {}, f"not readable as CSV ({error})")
                    continue
                if len(cells) == len(columns):
                    yield checked_row(line, {column: cells[number].strip() for number, column in used.items()})
                elif cells:
                    yield Row(
                        line, {}, f"{_more_or_fewer(len(cells), len(columns))} values than the header has columns"
                    )

    return Table(list(used.values()), rows())


def _open_csv(path: Path) -> Any:
    # Bytes that are not UTF-8 become surrogates, so that they are reported with their row.
    return path.open(newline="", encoding="utf-8-sig", errors="surrogateescape")


def _split_header(path: Path, header: str, required: str) -> tuple[str, list[str]]:
    """The delimiter and the columns."""
    found = {}
    for delimiter in _DELIMITERS:
        try:
            columns = [column.strip() for column in next(csv.reader([header], delimiter=delimiter), [])]
        except csv.Error as error:
            raise DataError(f"{path}, line 1: the header is not readable as CSV ({error}).") from error
        if required in columns:
            return delimiter, columns
        found[delimiter] = columns
    return _DELIMITERS[0], found[_DELIMITERS[0]]


def _more_or_fewer(count: int, expected: int) -> str:
    return "more" if count > expected else "fewer"


def _read_jsonl(path: Path, required: str, is_used: Callable[[str], bool]) -> Table:
    rows: list[Row] = []
    columns: dict[str, None] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = json_row(number, line, is_used, required)
            columns.update(dict.fromkeys(row.values))
            rows.append(row)
    # A key that is missing from a line has an empty value.
    return Table(
        list(columns),
        [row if row.problem else row._replace(values={c: row.values.get(c, "") for c in columns}) for row in rows],
    )


def json_row(number: int, line: bytes, is_used: Callable[[str], bool], required: str | None = None) -> Row:
    """Read a JSON object as a row. Keys for which `is_used` is false are ignored, and may hold anything."""
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except RecursionError:
        return Row(number, {}, "not readable as JSON (nested too deeply)")
    except ValueError as error:
        return Row(number, {}, f"not readable as JSON ({error})")
    if not isinstance(row, dict) or (required is not None and required not in row):
        received = shown(line.decode(errors="replace").strip())
        with_key = f" with a `{required}`" if required else ""
        return Row(number, {}, f"expected an object{with_key}. Received: {received}")
    used = {key: value for key, value in row.items() if is_used(key)}
    for key, value in used.items():
        if isinstance(value, dict | list):
            return Row(number, {}, f"`{key}` must be a text or a number. Received: a {type(value).__name__}")
    return checked_row(number, {key: "" if value is None else str(value).strip() for key, value in used.items()})


def _read_parquet(path: Path, required: str, is_used: Callable[[str], bool]) -> Table:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        if required not in names:
            received = ", ".join(names) or "nothing"
            raise DataError(f"{path}: expected a column `{required}`. Received: {shown(received)}")
        table = pq.read_table(path, columns=[name for name in dict.fromkeys(names) if is_used(name)])
        columns = {name: pc.cast(table.column(name), pa.string()).to_pylist() for name in table.column_names}
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: cannot be read as a Parquet file of texts or numbers ({str(error).splitlines()[0]})."
        ) from error
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return Table(
        list(columns),
        [
            checked_row(number, {key: (value or "").strip() for key, value in row.items()})
            for number, row in enumerate(rows, 1)
        ],
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = {key.strip(): value for key, value in pairs}
    if len(values) != len(pairs):
        repeated = [key for key, count in Counter(key.strip() for key, _ in pairs).items() if count > 1]
        raise ValueError(f"more than one `{shown(repeated[0])}`")
    return values


def checked_row(line: int, values: dict[str, str]) -> Row:
    """A row of texts, or the problem if one contains a control character or is not UTF-8."""
    if UNUSABLE_CHARACTERS.search(" ".join(values.values())):
        column, found = next((c, found) for c, text in values.items() if (found := UNUSABLE_CHARACTERS.search(text)))
        code = ord(found[0])
        if 0xDC80 <= code <= 0xDCFF:  # how Python marks a byte that it could not decode
            return Row(line, {}, f"`{column}` is not UTF-8 (byte 0x{code - 0xDC00:02X}). Save the file as UTF-8")
        return Row(line, {}, f"`{column}` contains a control character (U+{code:04X})")
    return Row(line, values)
