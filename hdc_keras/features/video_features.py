"""Features of a set of videos, by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import VideoDecodeError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class VideoFeatures:
    """Features of the videos that could be decoded, in the order of `records`.

    Attributes:
        records: the videos that could be decoded.
        arrays: (videos, channels) float32 by name, each the mean over views. Names are those of the outputs of
            `ClipEncoder`: levels, `{level}_{task}` and `embedding`.
        asked: number of videos requested, decoded or not.
        failed: the error of each video that could not be decoded, by its id.
        views: (videos, views, channels) float32 by name, the features of single views; empty if they were not kept.
    """

    records: list[VideoRecord]
    arrays: Arrays
    asked: int
    failed: dict[str, VideoDecodeError]
    views: Arrays = field(default_factory=dict)

    @property
    def causes(self) -> dict[str, str]:
        """Why videos could not be decoded, by path. Several videos may share one file."""
        return {error.path: error.cause for error in self.failed.values()}

    def of_split(self, split: str) -> "VideoFeatures":
        """The features of one split. `asked` and `failed` still describe the whole set."""
        return self.select([record for record in self.records if record.split == split])

    def select(self, records: Sequence[VideoRecord]) -> "VideoFeatures":
        """The features of some videos, matched by id, in the order of `records` and with their splits and labels.

        Videos that could not be decoded are left out.
        """
        rows_by_id = {record.video_id: row for row, record in enumerate(self.records)}
        kept = [record for record in records if record.video_id in rows_by_id]
        rows = [rows_by_id[record.video_id] for record in kept]
        arrays, views = ({name: a[rows] for name, a in arrays.items()} for arrays in (self.arrays, self.views))
        return VideoFeatures(kept, arrays, self.asked, self.failed, views)


def joined(train: VideoFeatures, test: VideoFeatures, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Standardise every channel with its mean and deviation over the training videos, and concatenate the arrays.

    Features after a ReLU are never negative, so all their cosines are close to 1 until the mean is subtracted.

    Args:
        train: features of the training videos.
        test: features of the test videos.
        names: the arrays to concatenate.

    Returns:
        (training videos, channels) and (test videos, channels) float32.
    """
    sides = []
    for features in (train, test):
        scaled = []
        for name in names:
            mean, deviation = train.arrays[name].mean(axis=0), train.arrays[name].std(axis=0)
            scaled.append((features.arrays[name] - mean) / (deviation + 1e-6))
        sides.append(np.concatenate(scaled, axis=1).astype(np.float32))
    return sides[0], sides[1]
