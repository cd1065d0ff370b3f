"""The interface of protocols on frozen features.

A protocol is a fixed, versioned recipe: fit a judge (for example a linear classifier or a nearest-neighbour search) on
the features of the training videos, and evaluate it on the features of the test videos. It takes a `Question` and
returns a `Judgement`. The registry returns the judgement in an `Answer`, together with label column, source and seed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hdc_keras.config import EvaluateConfig
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.publication import Publication

Metrics = dict[str, float]

MEAN_CLASS_ACCURACY = "mean_class_accuracy"
# Top-5 is reported only if there are more than five classes; otherwise it is always 1.
_TOP = 5


@dataclass(frozen=True)
class Judgement:
    """The metrics and predictions of one judge for the test videos.

    Attributes:
        metrics: value by name.
        predicted: predicted class of each test video; empty for protocols that only report metrics.
        neighbours: for retrieval, the ids of the nearest training videos of each test video, nearest first; else empty.
    """

    metrics: Metrics
    predicted: list[str] = field(default_factory=list)
    neighbours: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """The input of a protocol: how well can one label column be predicted from some of the features?

    Attributes:
        train: features of the training videos.
        test: features of the test videos.
        names: the feature arrays to predict from, concatenated.
        column: the label column to predict.
        settings: the `evaluate` section of the experiment.
        seed: seed of all random draws.
        prepared: what the protocol's `prepare` returned for these features; `None` if it has no `prepare`.
    """

    train: VideoFeatures
    test: VideoFeatures
    names: Sequence[str]
    column: str
    settings: EvaluateConfig
    seed: int
    prepared: Any = None

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
        """Group of each training video; a video without a group forms a group by itself."""
        return [record.group or record.video_id for record in self.train.records]


@dataclass(frozen=True)
class Protocol:
    """A recipe to evaluate frozen features.

    Attributes:
        version: increased whenever the same features would get different metrics.
        source: the publication that its hyperparameters come from, or "our choice".
        judge: fits on the training videos of a question and evaluates on its test videos.
        settings: the hyperparameters in use, given the `evaluate` section; they are written to the result.
        publication: what differs from the publication.
        prepare: the part of the work that does not depend on labels, given training and test features, the names of the
            arrays and the `evaluate` section. It is done once for all label columns.
        uses_last_level: whether the source "features" is the last level, as in the publication, and not all levels.
        needs_views: whether it uses the features of individual views, not only their mean.
        is_random: whether its metrics depend on the seed.
        least_seeds: minimum number of seeds to repeat it with.
    """

    version: int
    source: str
    judge: Callable[[Question], Judgement]
    settings: Callable[[EvaluateConfig], dict[str, Any]]
    publication: Publication = field(default_factory=Publication)
    prepare: Callable[[VideoFeatures, VideoFeatures, Sequence[str], EvaluateConfig], Any] | None = None
    uses_last_level: bool = False
    needs_views: bool = False
    is_random: bool = False
    least_seeds: int = 1


@dataclass(frozen=True)
class Answer:
    """The judgement of a protocol on one question.

    Attributes:
        column: the label column that was predicted.
        source: name of the feature arrays that it was predicted from (see `registry.feature_sources`).
        seed: seed of all random draws.
        judgement: metrics and predictions.
    """

    column: str
    source: str
    seed: int
    judgement: Judgement


def judged_by_scores(scores: np.ndarray, classes: Sequence[str], labels: Sequence[str]) -> Judgement:
    """Compute top-1 accuracy, top-5 accuracy if there are more than five classes, and mean class accuracy.

    Args:
        scores: (videos, classes), higher is more likely. Among equal scores, the class listed first in `classes` wins.
        classes: name of each column of `scores`.
        labels: true class of each video; it need not be in `classes`.

    Returns:
        The metrics "top1", "top5" and "mean_class_accuracy" as shares in [0, 1], and the most likely class of each
        video.
    """
    ranked = np.array(classes)[np.argsort(-scores, axis=1, kind="stable")]
    is_correct = ranked == np.array(labels)[:, None]
    metrics = {"top1": float(is_correct[:, 0].mean())}
    if len(classes) > _TOP:
        metrics["top5"] = float(is_correct[:, :_TOP].any(axis=1).mean())
    predicted = ranked[:, 0].tolist()
    return Judgement(metrics | {MEAN_CLASS_ACCURACY: mean_class_accuracy(predicted, labels)}, predicted)


def mean_class_accuracy(predicted: Sequence[str], labels: Sequence[str]) -> float:
    """Mean over the classes in `labels` of the share of their videos that are predicted correctly.

    Other than in top-1 accuracy, a class with few videos counts as much as one with many.
    """
    videos = Counter(labels)
    correct = Counter(label for label, other in zip(labels, predicted, strict=True) if label == other)
    return sum(correct[label] / count for label, count in videos.items()) / len(videos)
