"""`hdc-keras embed`: the embeddings of every video of a set, in one parquet file."""

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

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Embedded:
    """What became of the videos.

    Attributes:
        checkpoint: file name of the weights.
        asked: number of videos of the set.
        rows: number of videos in the file.
        failed: `video_id`, `file` and `cause` of the others.
        widths: channels of each embedding by name.
    """

    checkpoint: str
    asked: int
    rows: int
    failed: list[dict[str, str]]
    widths: dict[str, int]


def read_videos(experiment: Experiment) -> VideoSet:
    """Every video of `data.path`, with the split that the set itself gives it.

    `load_videos` holds test videos out where a set has no splits, which it refuses where a class has a single video.
    Here nothing is learned, so that nothing is held out.

    Raises:
        ConfigError: `data.limit` or `data.limit_per_class` is given.
        DataError: the set cannot be read, or is remote.
    """
    data = experiment.data
    for name in ("limit", "limit_per_class"):
        if getattr(data, name):
            raise ConfigError(f"data.{name}: every video of a set is embedded; list those you want in a CSV manifest.")
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

    A row a video, in the order of their ids: `video_id`, `path`, `label` or `label_NAME`, `split`, `group`, and float32
    vectors as `ClipEncoder` names them: `P2` ... , `P2_spatial` ... , `embedding`. What it was made from is in the
    file's metadata, as JSON under `hdc_keras`. Killed at any moment and called again alike, it goes on at the first
    part that is missing. Videos that fail are listed in `{file without suffix}.failures.csv`.

    Args:
        run: the run whose weights are used.
        experiment: the run's own, or a copy with other `data` or `evaluate`.
        records: the videos.
        file: the file to write; one that is there is left alone.
        best: the best checkpoint rather than the newest.
        videos_per_part: videos that are saved at once.
        progress: called with (videos done, in all, failed in the parts that are saved).
        warn: told of every damaged checkpoint that is passed over.

    Raises:
        DataError: a share of more than `data.max_failed_share` cannot be decoded, or counts do not add up.
        RunError: no checkpoint, `file` exists, cannot be written, or was begun with other weights, settings or videos.
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
    # A video is read once, so that none is worth keeping.
    store = _StoreById(experiment.data.decode_size, 0.0, experiment.data.decoder)
    # The share that may fail is one of the whole set, not of a part.
    all_may_fail = experiment.data.model_copy(update={"max_failed_share": 1.0})
    settings = experiment.model_copy(update={"data": all_may_fail})
    failures = DecodeFailures(total, experiment.data.max_failed_share)

    def count_failures(part: int, failed: dict[str, str]) -> None:
        for record in table.records_of(part):
            if record.video_id in failed:
                failures.add(VideoDecodeError(record.path, failed[record.video_id]))

    for part, failed in table.failed.items():
        count_failures(part, failed)
    done = sum(len(table.records_of(part)) for part in table.failed)

    def show(done_of_part: int, _: int) -> None:
        if progress:
            progress(done + done_of_part, total, len(failures.reasons))

    show(0, 0)
    for part in range(table.parts):
        if part in table.failed:
            continue
        features = extract_features(encoder, table.records_of(part), settings, store, show)
        count_failures(part, features.failed)
        table.write_part(part, features.records, features.arrays, features.failed)
        done += features.asked
        show(0, 0)


class _StoreById(FrameStore):
    """Names a video that cannot be decoded by its id: several may be of one file, and those of shards are of none."""

    def count(self, record: VideoRecord) -> int:
        with _named_by_id(record):
            return super().count(record)

    def clips(self, record: VideoRecord, indices: np.ndarray) -> np.ndarray:
        with _named_by_id(record):
            return super().clips(record, indices)


@contextmanager
def _named_by_id(record: VideoRecord) -> Iterator[None]:
    try:
        yield
    except VideoDecodeError as error:
        if error.path == record.video_id:  # by the call within
            raise
        cause = error.cause if error.path == record.path else f"{error.path}: {error.cause}"
        raise VideoDecodeError(record.video_id, cause) from error


def _widths(encoder: ClipEncoder, model: Any) -> dict[str, int]:
    """Channels of each of the encoder's outputs."""
    levels = {level: model.feature_widths[level] for level in encoder.levels}
    heads = {name: head.embedding_dim for name, head in encoder.heads.items()}
    return levels | heads | {"embedding": model.contrast_config.embedding_dim * len(encoder.tasks)}


def _settings(experiment: Experiment, encoder: ClipEncoder, model: Any) -> dict[str, Any]:
    """All but weights and videos that the numbers depend on."""
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
        # These move the last digits alone.
        "batch_size": evaluate.batch_size,
        "backend": keras.backend.backend(),
        "device": list_devices()[0].partition(":")[0],
    }
