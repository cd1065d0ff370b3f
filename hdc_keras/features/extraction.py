"""Frozen features of a set of videos: every video once through a network."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.loading import DecodeFailures, FrameStore, clip_batches
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import Arrays, VideoFeatures

Progress = Callable[[int, int], None]


def extract_features(
    encoder: ClipEncoder,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    store: FrameStore,
    progress: Progress | None = None,
    cache: FeatureStore | None = None,
    keep_views: bool = False,
) -> VideoFeatures:
    """Encode `evaluate.clips` evenly spaced clips of every video, `encoder.crops` crops of each, and average them.

    Args:
        encoder: the frozen network.
        records: videos; none is dropped, and each that fails is named in the result.
        experiment: its `data` and `evaluate` sections say how clips are made.
        store: decodes them.
        progress: called with (videos done, videos in all).
        cache: where features are kept for the next time; they are not kept when `None`.
        keep_views: whether the features of every single view are kept too.

    Raises:
        DataError: too many videos cannot be decoded, or counts do not add up.
    """
    known = cache.find(encoder, records, experiment, keep_views) if cache else None
    if known:
        if progress:
            progress(len(records), len(records))
        return known
    failures = DecodeFailures(len(records), experiment.data.max_failed_share)
    kept: list[VideoRecord] = []
    means: dict[str, list[np.ndarray]] = {}
    views: dict[str, list[np.ndarray]] = {}
    for batch, outputs in encoded_batches(
        encoder.predict_on_batch, encoder.crops, records, experiment, store, failures, progress
    ):
        kept += batch
        for name, values in outputs.items():
            means.setdefault(name, []).append(values.mean(axis=1))
            if keep_views:
                views.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(values) for name, values in means.items()}
    kept_views = {name: np.concatenate(values) for name, values in views.items()}
    features = VideoFeatures(kept, arrays, len(records), dict(failures.reasons), kept_views)
    if cache:
        cache.keep(encoder, records, experiment, features, keep_views)
    return features


def encoded_batches(
    encode: Callable[[np.ndarray], Arrays],
    crops: int,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    store: FrameStore,
    failures: DecodeFailures,
    progress: Progress | None = None,
) -> Iterator[tuple[list[VideoRecord], Arrays]]:
    """Every video once, through a network: those of a batch that decoded, and what it gives for each of their views.

    Args:
        encode: clips (batch, time, height, width, 3) uint8 -> (crops * batch, ...) by name.
        crops: how many crops of a clip it makes, one after the other.
        records: as in `extract_features`.
        experiment: as in `extract_features`.
        store: as in `extract_features`.
        failures: notes the videos that do not decode.
        progress: as in `extract_features`.

    Returns:
        An iterator of videos and of (videos, views, ...) arrays by name.

    Raises:
        DataError: too many videos cannot be decoded, or counts do not add up.
    """
    settings = experiment.evaluate
    reading = clip_batches(
        records,
        store,
        failures,
        clips=settings.clips,
        frames=experiment.data.frames,
        stride=experiment.data.stride,
        batch_size=settings.batch_size,
        workers=experiment.data.workers,
    )
    done = encoded = 0
    for batch in reading:
        if batch.records:
            # Always a full batch, so that no backend compiles for the smaller ones.
            clips = np.resize(batch.clips, (settings.batch_size, *batch.clips.shape[1:]))
            outputs = {}
            for name, values in encode(clips.reshape(-1, *clips.shape[2:])).items():
                by_crop = np.asarray(values).reshape(crops, *clips.shape[:2], -1)
                per_video = np.moveaxis(by_crop, 0, 2).reshape(clips.shape[0], clips.shape[1] * crops, -1)
                outputs[name] = per_video[: len(batch.records)]
            yield batch.records, outputs
        encoded += len(batch.records)
        done += batch.asked
        if progress:
            progress(done, len(records))
    if encoded + len(failures.reasons) != len(records):
        raise DataError(
            f"{len(records)} videos were asked for, but {encoded} were evaluated and {len(failures.reasons)} failed"
        )
