"""Extract frozen features: pass every video of a set through a network once."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.loading import DecodeFailures, FrameStore, clip_batches
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import Arrays, VideoFeatures

# (videos done, total videos).
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
        records: the videos. The result contains the features of each, or lists it as failed.
        experiment: its `data` and `evaluate` sections define the clips.
        store: decodes the videos.
        progress: called with (videos done, total videos).
        cache: searched first; newly extracted features are added to it. `None` for no cache.
        keep_views: whether to keep the features of every single view too.

    Raises:
        DataError: too many videos cannot be decoded, or a video is neither encoded nor listed as failed.
    """
    cached = cache.find(encoder, records, experiment, keep_views) if cache else None
    if cached:
        if progress:
            progress(len(records), len(records))
        return cached
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
    """Pass every video through a network once, and yield the outputs batch by batch.

    Args:
        encode: the network, from clips (batch, time, height, width, 3) uint8 to (crops * batch, ...) arrays by name.
        crops: number of crops that the network makes of each clip.
        records: as in `extract_features`.
        experiment: as in `extract_features`.
        store: as in `extract_features`.
        failures: collects the videos that cannot be decoded.
        progress: as in `extract_features`.

    Returns:
        An iterator over batches: the videos that were decoded, and (videos, clips * crops, ...) arrays by name.

    Raises:
        DataError: too many videos cannot be decoded, or a video is neither encoded nor listed as failed.
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
            # Pads a smaller batch with repeated videos, because backends compile the network for each batch size.
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
    if encoded + len(failures.videos) != len(records):
        raise DataError(
            f"{len(records)} videos were requested, but {encoded} were encoded and {len(failures.videos)} failed."
        )
