"""The parquet file that `hdc-keras embed` writes from the features of a set, and the CSV that lists its failures."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError, RunError, VideoDecodeError
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.files import remove_leftovers, replacing, require_writable, write_text
from hdc_keras.locks import exclusive

# Metadata key: what the file was made from, as JSON.
METADATA_KEY = b"hdc_keras"
SEGMENT_COLUMNS = ("start", "end")
_FORMAT = 2
# Number of rows in a row group, which is merged, and later read, in one piece: 30 MB for R3D-18 (our choice).
_ROWS_PER_GROUP = 4096
# The column is not called `path`: a CSV with that column in a folder of videos would be read as the folder's manifest.
_FAILURE_COLUMNS = ("video_id", "file", "cause")


def failures_file(file: Path) -> Path:
    """Path of the CSV that lists the videos that could not be decoded."""
    return file.with_suffix(".failures.csv")


def write_failures(file: Path, failures: Sequence[Mapping[str, str]]) -> None:
    """Write a list of failures, or remove an earlier one if there are none.

    Args:
        file: the CSV file.
        failures: `video_id`, `file` and `cause` of each video.

    Raises:
        OSError: it cannot be written.
    """
    if not failures:
        file.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, _FAILURE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(failures)
    write_text(file, text.getvalue())


def failure_row(record: VideoRecord, error: VideoDecodeError) -> dict[str, str]:
    """A row of the list of failures. The file is the video, also if the frames are in a shard."""
    cause = error.cause if error.path == record.path else f"{error.path}: {error.cause}"
    return dict(zip(_FAILURE_COLUMNS, (record.video_id, record.path, cause), strict=True))


def check_free(file: Path) -> None:
    """Refuse to overwrite an existing file. `EmbeddingTable` finds out whether a table is the one to be written.

    Raises:
        RunError: it exists and is not a table of embeddings.
    """
    if file.exists() and _read_made_from(file) is None:
        raise _already_exists(file)


class EmbeddingTable:
    """A parquet file of embeddings, with one row per video.

    Args:
        file: path of the file.
        records: its videos, in the order of its rows.
        widths: number of channels of each embedding, by name.
        made_from: everything the embeddings depend on, and where they come from, as JSON values. It is kept in the
            metadata of the file.

    Raises:
        DataError: several videos share an id, or a path is not valid UTF-8.
        RunError: the file exists and was made from something else, or nothing can be written there.
    """

    def __init__(
        self, file: Path, records: Sequence[VideoRecord], widths: Mapping[str, int], made_from: Mapping[str, Any]
    ):
        self.file = file
        self.records = records
        self.widths = dict(widths)
        self.labels = list(dict.fromkeys(name for record in records for name in record.labels)) or ["label"]
        # Only in a table of videos that are parts of files.
        self._segment_columns = SEGMENT_COLUMNS if any(record.segment for record in records) else ()
        self.made_from = {**made_from, "videos": len(records), "videos_sha256": _digest(records), "format": _FORMAT}
        if file.exists() and _read_made_from(file) != self.made_from:
            raise _already_exists(file)
        try:
            require_writable(file.parent, file.name)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, read: Callable[[Sequence[VideoRecord]], VideoFeatures]) -> tuple[int, list[dict[str, str]]]:
        """Write the file, and list the videos that failed in a CSV beside it.

        Another process may run the same job: one of them writes the file, and the others wait for it.

        Args:
            read: returns the features of some of the videos, and why the others failed. About one row group of features
                is in memory at a time.

        Returns:
            The number of videos in the file; and `video_id`, `file` and `cause` of each video that failed. Both are
            read back from the files.

        Raises:
            DataError: no video could be decoded, or some video is neither embedded nor listed as failed. No file is
                written then.
            RunError: it cannot be written, or another file has appeared there.
        """
        with exclusive(self.file):
            if not self.file.exists():
                self._write(read)
            elif _read_made_from(self.file) != self.made_from:
                raise _already_exists(self.file)
        rows, failures = pq.read_metadata(self.file).num_rows, _read_failures(self.file)
        _require_all(len(self.records), rows, len(failures))
        return rows, failures

    def _write(self, read: Callable[[Sequence[VideoRecord]], VideoFeatures]) -> None:
        for written in (self.file, failures_file(self.file)):
            remove_leftovers(written)
        failures: list[dict[str, str]] = []
        try:
            with replacing(self.file) as temporary:
                with pq.ParquetWriter(temporary, self._schema(), compression="zstd") as writer:
                    for first in range(0, len(self.records), _ROWS_PER_GROUP):
                        asked = self.records[first : first + _ROWS_PER_GROUP]
                        features = read(asked)
                        writer.write_table(self._table(features), row_group_size=_ROWS_PER_GROUP)
                        failures += [
                            failure_row(one, features.failed[one.video_id])
                            for one in asked
                            if one.video_id in features.failed
                        ]
                if len(failures) == len(self.records):
                    raise DataError(
                        f"none of {len(failures)} videos can be decoded. The first:\n  {failures[0]['file']}: "
                        f"{failures[0]['cause']}"
                    )
                _require_all(len(self.records), pq.read_metadata(temporary).num_rows, len(failures))
                # Written before the file appears, so the file never exists without its list of failures.
                write_failures(failures_file(self.file), failures)
        except OSError as error:
            raise self._unwritable(error) from error

    def _table(self, features: VideoFeatures) -> pa.Table:
        records = features.records
        columns: list[Any] = [[record.video_id for record in records], [record.path for record in records]]
        columns += [[record.labels.get(name) for record in records] for name in self.labels]
        columns += [[record.split for record in records], [record.group for record in records]]
        for bound in range(len(self._segment_columns)):
            columns.append([record.segment[bound] if record.segment else None for record in records])
        for name, width in self.widths.items():
            values = features.arrays[name] if records else np.zeros((0, width))
            flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, width))
        return pa.table(columns, self._schema())

    def _schema(self) -> pa.Schema:
        # The same column names as in a manifest.
        labels = [name if name == "label" else f"label_{name}" for name in self.labels]
        texts = [pa.field(name, pa.string()) for name in ("video_id", "path", *labels, "split", "group")]
        seconds = [pa.field(name, pa.float64()) for name in self._segment_columns]
        vectors = [pa.field(name, pa.list_(pa.float32(), width)) for name, width in self.widths.items()]
        return pa.schema([*texts, *seconds, *vectors], {METADATA_KEY: json.dumps(self.made_from)})

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.file} cannot be written ({error.strerror or error}). Finished parts are kept. Free some disk space "
            "or make the folder writable, then repeat the command."
        )


def _read_made_from(file: Path) -> dict[str, Any] | None:
    """What a file was made from; `None` if it cannot be read."""
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
        facts: list[Any] = [record.video_id, record.path, dict(record.labels), record.split, record.group]
        facts += [record.segment] if record.segment else []
        try:
            digest.update(json.dumps(facts, ensure_ascii=False).encode())
        except UnicodeEncodeError:
            raise DataError(
                f"{record.path!a}: the file name is not valid UTF-8, which a parquet file requires. Rename the file."
            ) from None
    return digest.hexdigest()
