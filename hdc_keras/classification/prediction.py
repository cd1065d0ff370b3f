"""The job of `hdc-keras predict`: the most likely classes of videos, or of the parts of long videos."""

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from itertools import pairwise
from pathlib import Path

import numpy as np

from hdc_keras.classification.directory import ClassifierDirectory
from hdc_keras.classification.network import SCORES, ClassNetwork
from hdc_keras.config import DataConfig, Experiment
from hdc_keras.data.decoding import index_frames
from hdc_keras.data.from_experiment import frame_store
from hdc_keras.data.loading import DecodeFailures
from hdc_keras.data.preparing import Part
from hdc_keras.data.records import VideoRecord
from hdc_keras.engines.work import Engine
from hdc_keras.errors import DataError, RunError, VideoDecodeError
from hdc_keras.features.embedding_table import failure_row, write_failures
from hdc_keras.features.extraction import Cluster, Extraction
from hdc_keras.features.store import FeatureStore, digest_of_weights, identity
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.files import replacing, write_text
from hdc_keras.finetuning.classifier import VideoClassifier
from hdc_keras.locks import exclusive

# (videos done, total videos).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predicted:
    """What `predict` has done.

    Attributes:
        rows: number of rows of the file.
        failed: `video_id`, `file` and `cause` of every video, or part of one, that could not be decoded.
        top: number of classes in a row.
        first: how often each class comes first.
    """

    rows: int
    failed: list[dict[str, str]]
    top: int
    first: dict[str, int]


def predict(
    directory: ClassifierDirectory,
    experiment: Experiment,
    records: Sequence[VideoRecord],
    file: Path,
    *,
    top: int = 5,
    sliding: float | None = None,
    part: Part = Part(),
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Predicted | None:
    """Write the most likely classes of each video to a CSV or Parquet file.

    Columns: `video_id`, `file`, with `sliding` also `start` and `end` in seconds, then `class_1`, `score_1`,
    `class_2` ... with the most likely class first. Scores of all classes add up to 1; they are averaged over
    `evaluate.clips` evenly spaced clips of the video or part. Videos that cannot be decoded are listed in
    `{file}.failures.csv`. The second column is not called `path`: a CSV with that column in a folder of videos would be
    read as the folder's manifest.

    After an interruption, the same call continues with the first missing part. Several processes may make it at once
    and share the work; one of them writes the file.

    Args:
        directory: the classifier.
        experiment: its experiment, or a copy with other `data` or `evaluate` sections.
        records: the videos.
        file: the file to write. It must not exist.
        top: number of classes in a row; at most all.
        sliding: classify every `sliding` seconds of a video by itself.
        part: with more than one part, score the videos of this part only, and write no file.
        progress: called with (videos or parts of videos done, total).
        engine: the cluster that scores the videos, from `hdc_keras.engines.engine_on`; this process when `None`.

    Returns:
        What was done; `None` if only a part was scored.

    Raises:
        DataError: too many videos cannot be decoded, or none can.
        RunError: the classifier is damaged, another process has written the file, or it cannot be written.
    """
    model = directory.load()
    network = ClassNetwork(model, experiment.data.decode_size, experiment.evaluate.crops)
    failed: list[dict[str, str]] = []
    if sliding is not None:
        records, failed = sliding_parts(records, sliding, experiment.data.max_failed_share)
    # Of this network and these videos only, so that another command for the same file does not read it.
    work = file.with_name(f".{file.name}.{_digest(model, records)}.unfinished")
    store = FeatureStore(work, network, experiment)
    extraction = Extraction(network, records, experiment, frame_store(experiment, keeps=False), store)
    load = partial(_network_of, directory.path.absolute(), experiment)
    extraction.run(part, progress, Cluster(engine, load, [directory.facts_file]) if engine else None)
    if part.of > 1:
        return None
    with exclusive(file):
        if file.exists():
            shutil.rmtree(work, ignore_errors=True)
            raise RunError(f"{file} was written by another process meanwhile, and is left as it is.")
        scores = extraction.read()
        failed += [failure_row(one, scores.failed[one.video_id]) for one in records if one.video_id in scores.failed]
        if not scores.records:
            raise DataError(
                f"none of the videos can be decoded. The first:\n  {failed[0]['file']}: {failed[0]['cause']}"
                if failed
                else "there are no videos."
            )
        table = _table(scores, model.classes, min(top, len(model.classes)), sliding is not None)
        try:
            # First, so that the file never exists without its list of failures.
            write_failures(failures_file(file), failed)
            if file.suffix.lower() == ".csv":
                write_text(file, _csv(table))
            else:
                _write_parquet(table, file)
        except OSError as error:
            raise RunError(
                f"{file} cannot be written ({error.strerror or error}). Choose another with --out."
            ) from error
    shutil.rmtree(work, ignore_errors=True)
    best = [model.classes[column] for column in scores.arrays[SCORES].argmax(axis=1)]
    first = {name: best.count(name) for name in model.classes if name in best}
    return Predicted(len(scores.records), failed, min(top, len(model.classes)), first)


def _network_of(folder: Path, experiment: Experiment) -> ClassNetwork:
    """The network that `predict` uses, in another process."""
    model = ClassifierDirectory(folder).load()
    return ClassNetwork(model, experiment.data.decode_size, experiment.evaluate.crops)


def failures_file(file: Path) -> Path:
    """The CSV that lists the videos that could not be decoded."""
    return file.with_name(f"{file.name}.failures.csv")


def check_free(file: Path) -> None:
    """Raise `RunError` if the file exists, or the list of its failures, unless a killed process left that."""
    is_unfinished = any(file.parent.glob(f".{escape(file.name)}.*.unfinished"))
    for one in (file,) if is_unfinished else (file, failures_file(file)):
        if one.exists():
            raise already_exists(one)


def already_exists(file: Path) -> RunError:
    """The error for a file that would be overwritten."""
    return RunError(f"{file} exists and is not overwritten. Choose another file with --out.")


def clip_seconds(records: Sequence[VideoRecord], data: DataConfig) -> tuple[float, float] | None:
    """Length of a frame and of a clip in seconds, in the first video with a frame rate; `None` if none has one."""
    for record in records:
        with suppress(VideoDecodeError):
            rate = data.fps or (record.stored.rate if record.stored else index_frames(record.path).rate)
            if rate:
                return 1 / rate, ((data.frames - 1) * data.stride + 1) / rate
    return None


def _digest(model: VideoClassifier, records: Sequence[VideoRecord]) -> str:
    facts = [digest_of_weights(model), [identity(record) for record in records]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def sliding_parts(
    records: Sequence[VideoRecord], seconds: float, max_failed_share: float = 1.0
) -> tuple[list[VideoRecord], list[dict[str, str]]]:
    """Divide videos into parts of the same length. A rest shorter than half of it belongs to the part before it.

    Args:
        records: videos, or parts of video files.
        seconds: length of a part.
        max_failed_share: largest share of the videos that may be impossible to divide.

    Returns:
        The parts; and `video_id`, `file` and `cause` of every video that cannot be divided: it cannot be read, it has
        no times, or its frames lie in a prepared set.

    Raises:
        DataError: too many videos cannot be divided.
    """
    failures = DecodeFailures(len(records), max_failed_share)
    parts: list[VideoRecord] = []
    failed: list[dict[str, str]] = []
    for record in records:
        try:
            start, end = record.segment or (0.0, _seconds_of(record))
        except VideoDecodeError as error:
            failures.add(error, record.video_id)
            failed.append(failure_row(record, error))
            continue
        count = max(1, int((end - start) / seconds + 0.5))
        bounds = [start + seconds * number for number in range(count)] + [end]
        for first, last in pairwise(bounds):
            parts.append(replace(record, video_id=f"{record.video_id}@{first:.10g}-{last:.10g}", segment=(first, last)))
    return parts, failed


def _seconds_of(record: VideoRecord) -> float:
    if record.stored:
        raise VideoDecodeError(record.path, "lies in a prepared set, which cannot be divided. Give the video files")
    index = index_frames(record.path)
    if index.timestamps is not None and index.count > 1:
        times = index.timestamps * index.time_base
        return float(times[-1] - times[0] + (times[-1] - times[-2]))
    if not index.rate:
        raise VideoDecodeError(record.path, "has no times, so it cannot be divided")
    return index.count / index.rate


def _table(scores: VideoFeatures, classes: Sequence[str], top: int, is_sliding: bool) -> dict[str, list[object]]:
    values = scores.arrays[SCORES]
    order = np.argsort(-values, axis=1, kind="stable")[:, :top]
    segments = [record.segment for record in scores.records]
    table: dict[str, list[object]] = {
        "video_id": [record.video_id for record in scores.records],
        "file": [record.path for record in scores.records],
    }
    if is_sliding or any(segments):
        table["start"] = [segment[0] if segment else None for segment in segments]
        table["end"] = [segment[1] if segment else None for segment in segments]
    for rank in range(top):
        table[f"class_{rank + 1}"] = [classes[column] for column in order[:, rank]]
        table[f"score_{rank + 1}"] = np.take_along_axis(values, order[:, rank : rank + 1], 1)[:, 0].tolist()
    return table


def _csv(table: Mapping[str, Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([_cell(value) for value in row])
    return text.getvalue()


def _cell(value: object) -> object:
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else value


def _write_parquet(table: dict[str, list[object]], file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(file) as temporary:
        pq.write_table(pa.table(table), temporary, compression="zstd")
