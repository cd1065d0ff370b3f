"""Features of a set of videos, by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hdc_keras.data.records import VideoRecord

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class VideoFeatures:
    """Features of the videos that decoded, in the order of `records`.

    Attributes:
        records: the videos that decoded.
        arrays: (videos, channels) float32 by name: levels, `{level}_{task}` and `embedding`, each the mean over views.
        asked: number of videos asked for.
        failed: reason by path of every video that did not decode.
        views: (videos, views, channels) by name, where they were kept.
    """

    records: list[VideoRecord]
    arrays: Arrays
    asked: int
    failed: dict[str, str]
    views: Arrays = field(default_factory=dict)

    def of_split(self, split: str) -> "VideoFeatures":
        """The videos of one split; the counts stay those of the whole set."""
        return self.select([record for record in self.records if record.split == split])

    def select(self, records: Sequence[VideoRecord]) -> "VideoFeatures":
        """The features of those of `records` that decoded, known by their ids; splits and labels are theirs."""
        rows_by_id = {record.video_id: row for row, record in enumerate(self.records)}
        kept = [record for record in records if record.video_id in rows_by_id]
        rows = [rows_by_id[record.video_id] for record in kept]
        arrays, views = ({name: a[rows] for name, a in arrays.items()} for arrays in (self.arrays, self.views))
        return VideoFeatures(kept, arrays, self.asked, self.failed, views)


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
