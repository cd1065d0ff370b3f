"""The parquet file that `hdc-keras embed` writes, and the parts it grows from, so that a kill costs one part.

A part is a complete parquet file in a hidden folder beside the final one. Its metadata say what it was made from and
which of its videos failed; it counts only where that is what is being made now. When all parts are there, they are put
together, a few at a time, and the whole is renamed into place.
"""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError, RunError

# Where the file says what it was made from, as JSON, and a part which of its videos failed.
METADATA_KEY = b"hdc_keras"
_FAILED_KEY = b"hdc_keras_failed"
_FORMAT = 1
# Rows that are put together, and later read, at once: 30 MB for R3D-18 (our choice).
_ROWS_PER_GROUP = 4096
_PART_NAME = "part-{:06d}.parquet"
# A path is not called `path` here: in a folder of videos such a CSV would be taken for the folder's manifest.
_FAILURE_COLUMNS = ("video_id", "file", "cause")


def failures_file(file: Path) -> Path:
    """Where the videos are listed that could not be decoded."""
    return file.with_suffix(".failures.csv")


def parts_folder(file: Path) -> Path:
    """Where the parts are until the file is complete."""
    return file.with_name(f".{file.name}.parts")


def check_free(file: Path) -> None:
    """Refuse a file that is there. With its parts beside it, it may be that of a job killed while it removed them.

    Raises:
        RunError: it exists.
    """
    if file.exists() and not parts_folder(file).exists():
        raise _occupied(file)


class EmbeddingTable:
    """A file of embeddings in the making: begun anew, or gone on with.

    Args:
        file: the parquet file to be.
        records: its videos, in the order of its rows.
        widths: channels by name of each embedding.
        made_from: all that the embeddings follow from, and where it is from, fit for JSON; kept in the file's metadata.
        videos_per_part: videos that are saved at once.

    Attributes:
        failed: of each part that is there, the cause by id of the videos that failed.

    Raises:
        DataError: videos share an id.
        RunError: the file exists, its parts were made from something else, or nothing can be written there.
    """

    def __init__(
        self,
        file: Path,
        records: Sequence[VideoRecord],
        widths: Mapping[str, int],
        made_from: Mapping[str, Any],
        videos_per_part: int,
    ):
        self.file = file
        self.folder = parts_folder(file)
        self.records = records
        self.widths = dict(widths)
        self.videos_per_part = videos_per_part
        self.labels = list(dict.fromkeys(name for record in records for name in record.labels)) or ["label"]
        self.made_from = {
            **made_from,
            "videos": len(records),
            "videos_per_part": videos_per_part,
            "videos_sha256": _digest(records),
            "format": _FORMAT,
        }
        check_free(file)
        if self.is_complete and _note_of(file) != self.made_from:
            raise _occupied(file)
        self.failed = self._known_parts()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def parts(self) -> int:
        """How many parts there are to be."""
        return -(-len(self.records) // self.videos_per_part)

    @property
    def is_complete(self) -> bool:
        """Whether the file is in its place; parts may be left."""
        return self.file.exists()

    def records_of(self, part: int) -> Sequence[VideoRecord]:
        """The videos of a part."""
        return self.records[part * self.videos_per_part : (part + 1) * self.videos_per_part]

    def write_part(
        self, part: int, records: Sequence[VideoRecord], arrays: Mapping[str, np.ndarray], failed: Mapping[str, str]
    ) -> None:
        """Save a part, whole or not at all.

        Args:
            part: its number.
            records: its videos that decoded.
            arrays: (videos, channels) float32 by name, in the order of `records`; not looked at where there are none.
            failed: cause by id of its other videos.

        Raises:
            DataError: a video of the part is missing.
            RunError: it cannot be written.
        """
        asked = self.records_of(part)
        if {*(record.video_id for record in records), *failed} != {record.video_id for record in asked}:
            raise DataError(f"{len(asked)} videos were asked for; {len(records)} were embedded, {len(failed)} failed")
        note = {METADATA_KEY: json.dumps(self.made_from), _FAILED_KEY: json.dumps(dict(failed))}
        file = self.folder / _PART_NAME.format(part)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as stream:
                pq.write_table(self._table(records, arrays).replace_schema_metadata(note), stream, compression="zstd")
                _to_disk(stream)
            temporary.replace(file)
        except OSError as error:
            raise self._unwritable(error) from error
        self.failed[part] = dict(failed)

    def finish(self) -> tuple[int, list[dict[str, str]]]:
        """Put the parts together, list the failures in a CSV beside the file, and remove the parts.

        Returns:
            How many videos are in the file, and `video_id`, `file` and `cause` of the others: as read back.

        Raises:
            DataError: no video could be decoded, or the counts do not add up; no file is left.
            RunError: it cannot be written, or a part cannot be read.
        """
        if not self.is_complete:
            failures = self._failures()
            if len(failures) == len(self.records):
                shutil.rmtree(self.folder)  # so that the videos are tried again
                first = failures[0]
                raise DataError(
                    f"none of {len(failures)} videos can be decoded. The first:\n  {first['file']}: {first['cause']}"
                )
            merged = self.folder / f".merged.{os.getpid()}"
            try:
                with merged.open("wb") as stream:
                    self._merge(stream)
                    _to_disk(stream)
                _require(len(self.records), pq.read_metadata(merged).num_rows, len(failures))
                # Before the file, so that a file never lacks its list.
                self._write_failures(failures)
                merged.replace(self.file)
            except OSError as error:
                raise self._unwritable(error) from error
        rows, failures = pq.read_metadata(self.file).num_rows, _read_failures(self.file)
        _require(len(self.records), rows, len(failures))
        shutil.rmtree(self.folder, ignore_errors=True)
        return rows, failures

    def _known_parts(self) -> dict[int, dict[str, str]]:
        """The failures of each part that is there, all of which were made from what this file is made from."""
        failed = {}
        for part in range(self.parts):
            file = self.folder / _PART_NAME.format(part)
            if not file.exists():
                continue
            made_from = _note_of(file)
            if made_from is None:  # damaged since it was written: it is made anew
                continue
            if made_from != self.made_from:
                raise self._of_another(made_from)
            failed[part] = json.loads(pq.read_schema(file).metadata[_FAILED_KEY])
        return failed

    def _of_another(self, made_from: Mapping[str, Any]) -> RunError:
        there, now = made_from, self.made_from
        names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
        different = "\n  ".join(f"{name}: {there.get(name)} there, {now.get(name)} now" for name in names)
        return RunError(
            f"{self.folder} holds the begun parts of a file that is made otherwise; parts are never mixed.\n  "
            f"{different}\nRepeat the command that began it, choose another file with --out, or remove that folder to "
            "begin anew."
        )

    def _table(self, records: Sequence[VideoRecord], arrays: Mapping[str, np.ndarray]) -> pa.Table:
        columns: list[Any] = [[record.video_id for record in records], [record.path for record in records]]
        columns += [[record.labels.get(name) for record in records] for name in self.labels]
        columns += [[record.split for record in records], [record.group for record in records]]
        for name, width in self.widths.items():
            values = arrays[name] if records else np.zeros((0, width))
            flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, width))
        return pa.table(columns, self._schema())

    def _schema(self) -> pa.Schema:
        # Named as in a manifest.
        labels = [name if name == "label" else f"label_{name}" for name in self.labels]
        texts = [pa.field(name, pa.string()) for name in ("video_id", "path", *labels, "split", "group")]
        vectors = [pa.field(name, pa.list_(pa.float32(), width)) for name, width in self.widths.items()]
        return pa.schema([*texts, *vectors], {METADATA_KEY: json.dumps(self.made_from)})

    def _merge(self, stream: BinaryIO) -> None:
        """Write the rows of all parts, a group of rows in memory at a time."""
        with pq.ParquetWriter(stream, self._schema(), compression="zstd") as writer:
            waiting: list[pa.Table] = []
            for part in range(self.parts):
                file = self.folder / _PART_NAME.format(part)
                try:
                    # A file, not a data set: that would take folders named `key=value` for columns.
                    waiting.append(pq.ParquetFile(file).read())
                except (pa.ArrowException, OSError) as error:
                    raise RunError(f"{file} cannot be read ({error}). Remove it and repeat the command.") from error
                if sum(table.num_rows for table in waiting) >= _ROWS_PER_GROUP or part == self.parts - 1:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=_ROWS_PER_GROUP)
                    waiting = []

    def _failures(self) -> list[dict[str, str]]:
        return [
            dict(zip(_FAILURE_COLUMNS, (record.video_id, record.path, failed[record.video_id]), strict=True))
            for part, failed in sorted(self.failed.items())
            for record in self.records_of(part)
            if record.video_id in failed
        ]

    def _write_failures(self, failures: Sequence[Mapping[str, str]]) -> None:
        file = failures_file(self.file)
        if not failures:
            file.unlink(missing_ok=True)  # of an earlier file of this name
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, _FAILURE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(failures)
        temporary = self.folder / f".failures.{os.getpid()}"  # goes with the folder, whatever happens
        temporary.write_text(text.getvalue(), encoding="utf-8")
        temporary.replace(file)

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.file} cannot be written ({error.strerror or error}). What is embedded is kept: free some space or "
            "make its folder writable, and repeat the command."
        )


def _note_of(file: Path) -> dict[str, Any] | None:
    """What a file says it was made from; `None` where it cannot be read."""
    try:
        return json.loads((pq.read_schema(file).metadata or {})[METADATA_KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def _read_failures(file: Path) -> list[dict[str, str]]:
    listed = failures_file(file)
    if not listed.exists():
        return []
    with listed.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _require(asked: int, embedded: int, failed: int) -> None:
    if embedded + failed != asked:
        raise DataError(f"{asked} videos were asked for, but {embedded} were embedded and {failed} failed.")


def _occupied(file: Path) -> RunError:
    return RunError(f"{file} exists and is left as it is. Remove it, or choose another file with --out.")


def _digest(records: Sequence[VideoRecord]) -> str:
    """SHA-256 of all that rows say of videos, and of their order."""
    ids = sorted(record.video_id for record in records)
    repeated = next((one for one, following in pairwise(ids) if one == following), None)
    if repeated:
        raise DataError(f"several videos have the id `{repeated}`; each needs one of its own.")
    digest = hashlib.sha256()
    for record in records:
        facts = [record.video_id, record.path, dict(record.labels), record.split, record.group]
        try:
            digest.update(json.dumps(facts, ensure_ascii=False).encode())
        except UnicodeEncodeError:
            raise DataError(
                f"{record.path!a}: its name is not in UTF-8, which a parquet file needs; rename it."
            ) from None
    return digest.hexdigest()


def _to_disk(stream: BinaryIO) -> None:
    """Have the system write what it still holds in memory of a file."""
    stream.flush()
    os.fsync(stream.fileno())
