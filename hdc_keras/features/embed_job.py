"""The job of `hdc-keras embed`: write the embeddings of every video of a set to one parquet file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import frame_store
from hdc_keras.data.loading import DecodeFailures
from hdc_keras.data.preparing import Part
from hdc_keras.data.records import VideoRecord
from hdc_keras.engines.work import Engine
from hdc_keras.errors import RunError
from hdc_keras.features.embedding_table import EmbeddingTable
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import Cluster, Extraction, encode_videos
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import Arrays
from hdc_keras.files import digest
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.model_files import read_model
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


def embed(
    run: RunDirectory,
    experiment: Experiment,
    records: Sequence[VideoRecord],
    file: Path,
    *,
    best: bool = False,
    weights: str = "auto",
    store: Path | None = None,
    part: Part = Part(),
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    engine: Engine | None = None,
) -> Embedded | None:
    """Write the embeddings of videos, each averaged over `evaluate.clips` evenly spaced clips, to a parquet file.

    The file has one row per video, sorted by id: `video_id`, `path`, `label` or `label_NAME`, `split`, `group`, and
    float32 vectors named as in `ClipEncoder`: `P2` ..., `P2_spatial` ..., `embedding`. Its metadata key `hdc_keras`
    records, as JSON, what the embeddings were made from. Videos that cannot be decoded are listed in
    `{file without suffix}.failures.csv`.

    After an interruption, the same call continues with the first missing part. Several processes may make it at once.

    Args:
        run: the run that provides the weights.
        experiment: the experiment of the run, or a copy with other `data` or `evaluate` sections.
        records: the videos.
        file: the file to write. An existing file is never overwritten; after the same call, nothing is left to do.
        best: use the best checkpoint instead of the newest.
        weights: "raw", "ema" for their moving averages, or "auto" for the averages if the run keeps them.
        store: folder of extracted features; `features/` of the run when `None`.
        part: with more than one part, extract the features of this part only, and write no file.
        progress: called with the number of videos done, the total, and the number that failed.
        warn: called with a message for each damaged checkpoint that is skipped.
        engine: the cluster that extracts the features, from `hdc_keras.engines.engine_on`; this process when `None`.

    Returns:
        The outcome; `None` if only a part was extracted.

    Raises:
        ConfigError: `experiment` describes another network.
        DataError: the share of videos that cannot be decoded exceeds `data.max_failed_share`, or some video is neither
            embedded nor listed as failed.
        RunError: there is no checkpoint; `file` exists and was made from something else, or cannot be written.
    """
    run.require_network_of(experiment)
    records = sorted(records, key=lambda record: record.video_id)
    model, checkpoint = run.checkpoints.load(best=best, warn=warn, weights=weights)
    encoder = ClipEncoder(model, experiment.data.decode_size, experiment.evaluate.crops)
    widths = _widths(encoder, model)
    made_from = {"run": str(run.path.resolve()), "checkpoint": checkpoint.name, "weights_sha256": digest(checkpoint)}
    table = EmbeddingTable(file, records, widths, made_from | _settings(experiment, encoder, model))
    frames = frame_store(experiment, keeps=False)
    features = FeatureStore(store or run.feature_folder, encoder, experiment)
    extraction = Extraction(encoder, records, experiment, frames, features)

    def show(done: int, total: int) -> None:
        if progress:
            progress(done, total, len(extraction.failures.by_id))

    if not file.exists():
        load = partial(_encoder_of, checkpoint.absolute(), model.uses_averages, experiment)
        extraction.run(part, show, Cluster(engine, load, [checkpoint]) if engine else None)
    if part.of > 1:
        return None
    rows, failed = table.write(extraction.read)
    return Embedded(checkpoint.name, len(records), rows, failed, widths)


def embed_files(run: RunDirectory, made_from: Mapping[str, Any], files: Sequence[Path]) -> Arrays:
    """Embed video files as the videos of a table were embedded.

    Args:
        run: the run that provided the weights of the table.
        made_from: what `embed` wrote about the table.
        files: the video files.

    Returns:
        (files, channels) float32 by name, as in the table.

    Raises:
        DataError: a file cannot be decoded.
        RunError: the run no longer has the checkpoint that the table was made with.
    """
    checkpoints = [*run.checkpoints.files()[::-1], run.checkpoints.best]
    expected = made_from["weights_sha256"]
    checkpoint = next((file for file in checkpoints if file.exists() and digest(file) == expected), None)
    if checkpoint is None:
        raise RunError(
            f"{run.path} no longer has the checkpoint that the table was made with ({made_from['checkpoint']}). Embed "
            "the videos again, or search for a video of the table."
        )
    model = read_model(checkpoint)
    if made_from.get("weights") == "ema":
        model.use_averages()
    own = run.experiment()
    data = own.data.model_copy(
        update={
            "decode_size": tuple(made_from["decode_size"]),
            "max_failed_share": 0.0,
            **{name: made_from[name] for name in ("frames", "stride", "decoder")},
            "fps": made_from.get("fps"),
        }
    )
    evaluate = own.evaluate.model_copy(update={name: made_from[name] for name in ("clips", "crops")})
    experiment = own.model_copy(update={"data": data, "evaluate": evaluate})
    encoder = ClipEncoder(model, data.decode_size, evaluate.crops)
    records = [VideoRecord(str(file), str(file)) for file in files]
    frames, failures = frame_store(experiment, keeps=False), DecodeFailures(len(records), 0.0)
    found = encode_videos(encoder, records, experiment, frames, failures)
    rows = {record.video_id: row for row, record in enumerate(found.records)}
    return {name: values[[rows[str(file)] for file in files]] for name, values in found.arrays.items()}


def _encoder_of(checkpoint: Path, averages: bool, experiment: Experiment) -> ClipEncoder:
    """The encoder that `embed` uses, in another process."""
    model = read_model(checkpoint)
    if averages:
        model.use_averages()
    return ClipEncoder(model, experiment.data.decode_size, experiment.evaluate.crops)


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
        "backend": keras.backend.backend(),
        **({"weights": "ema"} if model.uses_averages else {}),
        **({"fps": data.fps} if data.fps else {}),
    }
