"""What a protocol on frozen features is, and what it gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hdc_keras.config import EvaluateConfig
from hdc_keras.features.video_features import VideoFeatures

Metrics = dict[str, float]

# Top-5 says nothing where there are no more classes than that.
_TOP = 5


@dataclass(frozen=True)
class Judgement:
    """What one judge says of one set of test videos.

    Attributes:
        metrics: by name.
        predicted: class of each test video; empty where a protocol does not name one.
        neighbours: ids of the nearest training videos of each test video, nearest first; empty but for retrieval.
    """

    metrics: Metrics
    predicted: list[str] = field(default_factory=list)
    neighbours: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """What a protocol is asked: to judge some features of test videos by training videos, for one kind of label.

    Attributes:
        train: training videos.
        test: test videos.
        names: the arrays that are judged, side by side.
        column: the label column.
        settings: of the evaluation.
        seed: of everything random.
    """

    train: VideoFeatures
    test: VideoFeatures
    names: Sequence[str]
    column: str
    settings: EvaluateConfig
    seed: int

    @property
    def train_labels(self) -> list[str]:
        """Class of each training video."""
        return [record.labels[self.column] for record in self.train.records]

    @property
    def test_labels(self) -> list[str]:
        """Class of each test video."""
        return [record.labels[self.column] for record in self.test.records]

    @property
    def train_groups(self) -> list[str]:
        """Group of each training video; a video without one is its own."""
        return [record.group or record.video_id for record in self.train.records]


@dataclass(frozen=True)
class Protocol:
    """A way to judge frozen features.

    Attributes:
        version: changed whenever the same features would get another figure.
        source: where its numbers come from.
        judge: the judge.
        settings: the numbers that it uses.
        needs_views: whether it looks at single views, not only at their mean.
        is_random: whether its figures depend on a seed.
        least_seeds: seeds that it is repeated with at least.
    """

    version: int
    source: str
    judge: Callable[[Question], Judgement]
    settings: Callable[[EvaluateConfig], dict[str, Any]]
    needs_views: bool = False
    is_random: bool = False
    least_seeds: int = 1


@dataclass(frozen=True)
class Answer:
    """What a protocol says of one kind of label, read from one source of features, with one seed."""

    column: str
    source: str
    seed: int
    judgement: Judgement


def judged_by_scores(scores: np.ndarray, classes: Sequence[str], labels: Sequence[str]) -> Judgement:
    """Top-1, and top-5 where there are more than five classes, from (videos, classes) scores.

    Of classes with equal scores, the one that comes first in `classes` is named first.
    """
    ranked = np.array(classes)[np.argsort(-scores, axis=1, kind="stable")]
    right = ranked == np.array(labels)[:, None]
    metrics = {"top1": float(right[:, 0].mean())}
    if len(classes) > _TOP:
        metrics["top5"] = float(right[:, :_TOP].any(axis=1).mean())
    return Judgement(metrics, ranked[:, 0].tolist())
