"""The job of `hdc-keras embed`: write the embeddings of every video of a set to one parquet file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.datasets import VideoSet, read_local_dataset
from hdc_keras.data.loading import DecodeFailures, FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.devices import list_devices
from hdc_keras.errors import ConfigError, VideoDecodeError
from hdc_keras.features.embedding_table import EmbeddingTable
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.files import digest
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.version import __version__

# (videos done, total videos, videos that failed to decode).
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Embedded:
    """The outcome of the job.

    Attributes:
        checkpoint: file name of the weights.
        asked: number of videos in the set.
        rows: number of videos in the file.
        failed: `video_id`, `file` and `cause` of every video that could not be decoded.
        widths: number of channels of each embedding, by name.
    """

    checkpoint: str
    asked: int
    rows: int
    failed: list[dict[str, str]]
    widths: dict[str, int]


def read_videos(experiment: Experiment) -> VideoSet:
    """Read every video of `data.path`, with its split if the set defines splits.

    `load_videos` holds out test videos where a set defines no splits, and fails if a class has only one video.
    Embedding does not train, so no videos need to be held out.

    Raises:
        ConfigError: `data.limit` or `data.limit_per_class` is set.
        DataError: the set cannot be read, or is remote.
    """
    data = experiment.data
    for name in ("limit", "limit_per_class"):
        if getattr(data, name):
            raise ConfigError(
                f"data.{name} cannot be used with `embed`, which embeds every video of a set. To embed only some "
                "videos, list them in a CSV manifest."
            )
    return read_local_dataset(data)


def embed(
    run: RunDirectory,
    experiment: Experiment,
    records: Sequence[VideoRecord],
    file: Path,
    *,
    best: bool = False,
    videos_per_part: int = 256,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Embedded:
    """Write the embeddings of videos, each averaged over `evaluate.clips` evenly spaced clips, to a parquet file.

    The file has one row per video, sorted by id: `video_id`, `path`, `label` or `label_NAME`, `split`, `group`, and
    float32 vectors named as in `ClipEncoder`: `P2` ..., `P2_spatial` ..., `embedding`. Its metadata key `hdc_keras`
    records, as JSON, what the embeddings were made from. Videos that cannot be decoded are listed in
    `{file without suffix}.failures.csv`.

    After an interruption, the same call continues with the first missing part.

    Args:
        run: the run that provides the weights.
        experiment: the experiment of the run, or a copy with other `data` or `evaluate` sections.
        records: the videos.
        file: the file to write. An existing file is never overwritten.
        best: use the best checkpoint instead of the newest.
        videos_per_part: number of videos saved at a time.
        progress: called with the number of videos done, the total, and the number that failed in finished parts.
        warn: called with a message for each damaged checkpoint that is skipped.

    Raises:
        DataError: the share of videos that cannot be decoded exceeds `data.max_failed_share`, or some video is neither
            embedded nor listed as failed.
        RunError: there is no checkpoint; or `file` exists, cannot be written, or was started with other weights,
            settings or videos.
    """
    records = sorted(records, key=lambda record: record.video_id)
    model, checkpoint = run.checkpoints.load(best=best, warn=warn)
    encoder = ClipEncoder(model, experiment.data.decode_size, experiment.evaluate.crops)
    widths = _widths(encoder, model)
    made_from = {"run": str(run.path.resolve()), "checkpoint": checkpoint.name, "weights_sha256": digest(checkpoint)}
    table = EmbeddingTable(file, records, widths, made_from | _settings(experiment, encoder, model), videos_per_part)
    if not table.is_complete:
        _write_missing_parts(table, encoder, experiment, progress)
    rows, failed = table.finish()
    return Embedded(checkpoint.name, len(records), rows, failed, widths)


def _write_missing_parts(
    table: EmbeddingTable, encoder: ClipEncoder, experiment: Experiment, progress: Progress | None
) -> None:
    total = len(table.records)
    # Each video is read only once, so no frames are kept in memory.
    store = _StoreById(experiment.data.decode_size, 0.0, experiment.data.decoder)
    # `max_failed_share` applies to the whole set, so it is checked here and not within a part.
    any_may_fail = experiment.data.model_copy(update={"max_failed_share": 1.0})
    part_experiment = experiment.model_copy(update={"data": any_may_fail})
    failures = DecodeFailures(total, experiment.data.max_failed_share)

    def count_failures(part: int, failed: dict[str, str]) -> None:
        for record in table.records_of(part):
            if record.video_id in failed:
                failures.add(VideoDecodeError(record.path, failed[record.video_id]), record.video_id)

    for part, failed in table.failed.items():
        count_failures(part, failed)
    done = sum(len(table.records_of(part)) for part in table.failed)

    def show(done_in_part: int, _: int) -> None:
        if progress:
            progress(done + done_in_part, total, len(failures.videos))

    show(0, 0)
    for part in range(table.parts):
        if part in table.failed:
            continue
        features = extract_features(encoder, table.records_of(part), part_experiment, store, show)
        count_failures(part, features.failed)
        table.write_part(part, features.records, features.arrays, features.failed)
        done += features.asked
        show(0, 0)


class _StoreById(FrameStore):
    """Reports decoding errors by video id, because videos may share a file, and videos in shards have no file."""

    def count(self, record: VideoRecord) -> int:
        with _errors_by_id(record):
            return super().count(record)

    def clips(self, record: VideoRecord, indices: np.ndarray) -> np.ndarray:
        with _errors_by_id(record):
            return super().clips(record, indices)


@contextmanager
def _errors_by_id(record: VideoRecord) -> Iterator[None]:
    try:
        yield
    except VideoDecodeError as error:
        if error.path == record.video_id:  # `clips` calls `count`, which has already translated it
            raise
        cause = error.cause if error.path == record.path else f"{error.path}: {error.cause}"
        raise VideoDecodeError(record.video_id, cause) from error


def _widths(encoder: ClipEncoder, model: Any) -> dict[str, int]:
    """Number of channels of each output of the encoder."""
    levels = {level: model.feature_widths[level] for level in encoder.levels}
    heads = {name: head.embedding_dim for name, head in encoder.heads.items()}
    return levels | heads | {"embedding": model.contrast_config.embedding_dim * len(encoder.tasks)}


def _settings(experiment: Experiment, encoder: ClipEncoder, model: Any) -> dict[str, Any]:
    """Everything besides weights and videos that the embeddings depend on."""
    data, evaluate = experiment.data, experiment.evaluate
    return {
        "hdc_keras_version": __version__,
        "backbone": model.backbone.name,
        "dataset": data.path or "moving-shapes",
        "clips": evaluate.clips,
        "crops": evaluate.crops,
        "frames": data.frames,
        "stride": data.stride,
        "decode_size": list(data.decode_size),
        "view_size": encoder.view_size,
        "decoder": data.decoder,
        # These three only change rounding errors.
        "batch_size": evaluate.batch_size,
        "backend": keras.backend.backend(),
        "device": list_devices()[0].partition(":")[0],
    }
