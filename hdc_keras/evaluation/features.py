"""Frozen features of a set of videos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.loading import DecodeFailures, FrameStore, clip_batches
from hdc_keras.data.records import VideoRecord
from hdc_keras.encoder import ClipEncoder
from hdc_keras.errors import DataError


@dataclass(frozen=True)
class VideoFeatures:
    """Features of the videos that decoded, in the order of `records`.

    Attributes:
        records: the videos that decoded.
        arrays: (videos, channels) float32 by name: levels, `{level}_{task}` and `embedding`, each the mean over clips.
        asked: number of videos asked for.
        failed: reason by path of every video that did not decode.
    """

    records: list[VideoRecord]
    arrays: dict[str, np.ndarray]
    asked: int
    failed: dict[str, str]

    def of_split(self, split: str) -> "VideoFeatures":
        """The videos of one split; the counts stay those of the whole set."""
        rows = [row for row, record in enumerate(self.records) if record.split == split]
        return VideoFeatures(
            [self.records[row] for row in rows],
            {name: array[rows] for name, array in self.arrays.items()},
            self.asked,
            self.failed,
        )


def extract_features(
    encoder: ClipEncoder,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    store: FrameStore,
    progress: Callable[[int, int], None] | None = None,
) -> VideoFeatures:
    """Encode `evaluate.clips` evenly spaced clips of every video and average them.

    Args:
        encoder: the frozen network.
        records: videos; none is dropped, and each that fails is named in the result.
        experiment: its `data` and `evaluate` sections say how clips are made.
        store: decodes them.
        progress: called with (videos done, videos in all).

    Raises:
        DataError: too many videos cannot be decoded, or counts do not add up.
    """
    settings = experiment.evaluate
    failures = DecodeFailures(len(records), experiment.data.max_failed_share)
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
    kept: list[VideoRecord] = []
    batches: dict[str, list[np.ndarray]] = {}
    done = 0
    for batch in reading:
        if batch.records:
            # Always a full batch, so that no backend compiles for the smaller ones.
            clips = np.resize(batch.clips, (settings.batch_size, *batch.clips.shape[1:]))
            outputs = encoder.predict_on_batch(clips.reshape(-1, *clips.shape[2:]))
            for name, values in outputs.items():
                per_video = np.asarray(values).reshape(*clips.shape[:2], -1).mean(axis=1)
                batches.setdefault(name, []).append(per_video[: len(batch.records)])
        kept += batch.records
        done += batch.asked
        if progress:
            progress(done, len(records))
    if len(kept) + len(failures.reasons) != len(records):
        raise DataError(
            f"{len(records)} videos were asked for, but {len(kept)} were evaluated and {len(failures.reasons)} failed"
        )
    arrays = {name: np.concatenate(values) for name, values in batches.items()}
    return VideoFeatures(kept, arrays, len(records), dict(failures.reasons))


def joined(train: VideoFeatures, test: VideoFeatures, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Several arrays side by side, each channel standardised by the training videos.

    Features after a ReLU are all positive and so all alike by cosine; taking the mean away lets them differ.

    Returns:
        (training videos, channels), (test videos, channels) float32.
    """
    sides = []
    for features in (train, test):
        scaled = []
        for name in names:
            mean, deviation = train.arrays[name].mean(axis=0), train.arrays[name].std(axis=0)
            scaled.append((features.arrays[name] - mean) / (deviation + 1e-6))
        sides.append(np.concatenate(scaled, axis=1).astype(np.float32))
    return sides[0], sides[1]
