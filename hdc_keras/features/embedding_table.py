"""The parquet file that `hdc-keras embed` writes, and the parts it is assembled from.

A part is a complete parquet file in a hidden folder beside the final one, so a killed job loses at most one part. The
metadata of a part record what it was made from and which of its videos failed. Parts made from other weights, settings
or videos are refused. Once all parts exist, they are merged, a few at a time, into the final file.
"""

import csv
import hashlib
import io
import json
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
from hdc_keras.files import remove_leftovers, replacing, replacing_stream, write_text

# Metadata key, in the file and in each part: what it was made from, as JSON.
METADATA_KEY = b"hdc_keras"
# Metadata key, in each part: the cause of failure by video id, as JSON.
_FAILED_KEY = b"hdc_keras_failed"
_FORMAT = 1
# Number of rows in a row group, which is merged, and later read, in one piece: 30 MB for R3D-18 (our choice).
_ROWS_PER_GROUP = 4096
_PART_NAME = "part-{:06d}.parquet"
# The column is not called `path`: a CSV with that column in a folder of videos would be read as the folder's manifest.
_FAILURE_COLUMNS = ("video_id", "file", "cause")


def failures_file(file: Path) -> Path:
    """Path of the CSV that lists the videos that could not be decoded."""
    return file.with_suffix(".failures.csv")


def parts_folder(file: Path) -> Path:
    """Folder that holds the parts until the file is complete."""
    return file.with_name(f".{file.name}.parts")


def check_free(file: Path) -> None:
    """Refuse to overwrite an existing file.

    A file with its parts beside it is accepted: its job may have been killed before it could remove them, and
    `EmbeddingTable` checks whether they belong together.

    Raises:
        RunError: it exists.
    """
    if file.exists() and not parts_folder(file).exists():
        raise _already_exists(file)


class EmbeddingTable:
    """A parquet file of embeddings that is being written, part by part; continues with the parts that already exist.

    Args:
        file: path of the final parquet file.
        records: its videos, in the order of its rows.
        widths: number of channels of each embedding, by name.
        made_from: everything the embeddings depend on, and where they come from, as JSON values. It is kept in the
            metadata of the file.
        videos_per_part: number of videos saved at a time.

    Attributes:
        failed: for each existing part, the cause by video id for the videos that failed.

    Raises:
        DataError: several videos share an id.
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
        if self.is_complete and _read_made_from(file) != self.made_from:
            raise _already_exists(file)
        self.failed = self._failed_by_part()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def parts(self) -> int:
        """Total number of parts."""
        return -(-len(self.records) // self.videos_per_part)

    @property
    def is_complete(self) -> bool:
        """Whether the final file exists; its parts may still exist too."""
        return self.file.exists()

    def records_of(self, part: int) -> Sequence[VideoRecord]:
        """The videos of a part."""
        return self.records[part * self.videos_per_part : (part + 1) * self.videos_per_part]

    def write_part(
        self, part: int, records: Sequence[VideoRecord], arrays: Mapping[str, np.ndarray], failed: Mapping[str, str]
    ) -> None:
        """Save a part, atomically.

        Args:
            part: its number.
            records: its videos that were decoded.
            arrays: (videos, channels) float32 by name, in the order of `records`; ignored if `records` is empty.
            failed: cause by video id for the videos that could not be decoded.

        Raises:
            DataError: a video of the part is neither in `records` nor in `failed`.
            RunError: it cannot be written.
        """
        asked = self.records_of(part)
        if {*(record.video_id for record in records), *failed} != {record.video_id for record in asked}:
            raise DataError(_counts_differ(len(asked), len(records), len(failed)))
        metadata = {METADATA_KEY: json.dumps(self.made_from), _FAILED_KEY: json.dumps(dict(failed))}
        table = self._table(records, arrays).replace_schema_metadata(metadata)
        try:
            with replacing_stream(self.folder / _PART_NAME.format(part)) as stream:
                pq.write_table(table, stream, compression="zstd")
        except OSError as error:
            raise self._unwritable(error) from error
        self.failed[part] = dict(failed)

    def finish(self) -> tuple[int, list[dict[str, str]]]:
        """Merge the parts into the final file, list the failures in a CSV beside it, and remove the parts.

        Returns:
            The number of videos in the file; and `video_id`, `file` and `cause` of each video that failed. Both are
            read back from the files.

        Raises:
            DataError: no video could be decoded, or some video is neither embedded nor listed as failed. No new
                file is written then.
            RunError: it cannot be written, or a part cannot be read.
        """
        if not self.is_complete:
            failures = self._failures()
            if len(failures) == len(self.records):
                shutil.rmtree(self.folder)  # so the next try decodes the videos again
                first = failures[0]
                raise DataError(
                    f"none of {len(failures)} videos can be decoded. The first:\n  {first['file']}: {first['cause']}"
                )
            for written in (self.file, failures_file(self.file)):
                remove_leftovers(written)
            try:
                with replacing(self.file) as temporary:
                    with temporary.open("wb") as stream:
                        self._merge(stream)
                    _require_all(len(self.records), pq.read_metadata(temporary).num_rows, len(failures))
                    # Written before the file appears, so the file never exists without its list of failures.
                    self._write_failures(failures)
            except OSError as error:
                raise self._unwritable(error) from error
        rows, failures = pq.read_metadata(self.file).num_rows, _read_failures(self.file)
        _require_all(len(self.records), rows, len(failures))
        shutil.rmtree(self.folder, ignore_errors=True)
        return rows, failures

    def _failed_by_part(self) -> dict[int, dict[str, str]]:
        """Read which videos failed in each existing part. Damaged parts are left out, so they are written again."""
        failed = {}
        for part in range(self.parts):
            file = self.folder / _PART_NAME.format(part)
            made_from = _read_made_from(file) if file.exists() else None
            if made_from is None:
                continue
            if made_from != self.made_from:
                raise self._made_from_something_else(made_from)
            failed[part] = json.loads(pq.read_schema(file).metadata[_FAILED_KEY])
        return failed

    def _made_from_something_else(self, before: Mapping[str, Any]) -> RunError:
        now = self.made_from
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        differences = "\n  ".join(f"{name}: {before.get(name)} before, {now.get(name)} now" for name in names)
        return RunError(
            f"{self.folder} holds parts of an unfinished file that was started with other weights, settings or videos. "
            f"Such parts are never mixed.\n  {differences}\nRepeat the command that started the file, choose another "
            "file with --out, or delete that folder to start over."
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
        # The same column names as in a manifest.
        labels = [name if name == "label" else f"label_{name}" for name in self.labels]
        texts = [pa.field(name, pa.string()) for name in ("video_id", "path", *labels, "split", "group")]
        vectors = [pa.field(name, pa.list_(pa.float32(), width)) for name, width in self.widths.items()]
        return pa.schema([*texts, *vectors], {METADATA_KEY: json.dumps(self.made_from)})

    def _merge(self, stream: BinaryIO) -> None:
        """Write the rows of all parts, holding about one row group in memory at a time."""
        with pq.ParquetWriter(stream, self._schema(), compression="zstd") as writer:
            waiting: list[pa.Table] = []
            for part in range(self.parts):
                file = self.folder / _PART_NAME.format(part)
                try:
                    # Not `pq.read_table`: it reads folders named `key=value` as partition columns.
                    waiting.append(pq.ParquetFile(file).read())
                except (pa.ArrowException, OSError) as error:
                    raise RunError(f"{file} cannot be read ({error}). Delete it and repeat the command.") from error
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
            file.unlink(missing_ok=True)  # it belonged to an earlier file of this name
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, _FAILURE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(failures)
        write_text(file, text.getvalue())

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.file} cannot be written ({error.strerror or error}). Finished parts are kept. Free some disk space "
            "or make the folder writable, then repeat the command."
        )


def _read_made_from(file: Path) -> dict[str, Any] | None:
    """What a file or part was made from; `None` if it cannot be read."""
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


def _require_all(asked: int, embedded: int, failed: int) -> None:
    if embedded + failed != asked:
        raise DataError(_counts_differ(asked, embedded, failed))


def _counts_differ(asked: int, embedded: int, failed: int) -> str:
    return f"{asked} videos were requested, but {embedded} were embedded and {failed} failed."


def _already_exists(file: Path) -> RunError:
    return RunError(f"{file} already exists and was not changed. Delete it, or choose another file with --out.")


def _digest(records: Sequence[VideoRecord]) -> str:
    """SHA-256 of everything that the rows say about the videos, and of their order. Refuses repeated ids."""
    ids = sorted(record.video_id for record in records)
    repeated = next((one for one, following in pairwise(ids) if one == following), None)
    if repeated:
        raise DataError(f"several videos have the id `{repeated}`. Ids must be unique.")
    digest = hashlib.sha256()
    for record in records:
        facts = [record.video_id, record.path, dict(record.labels), record.split, record.group]
        try:
            digest.update(json.dumps(facts, ensure_ascii=False).encode())
        except UnicodeEncodeError:
            raise DataError(
                f"{record.path!a}: the file name is not valid UTF-8, which a parquet file requires. Rename the file."
            ) from None
    return digest.hexdigest()
