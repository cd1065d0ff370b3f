"""The kNN check: a cheap measure, during pretraining, of what the model has learned so far. It reads no test video."""

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest

import numpy as np

from hdc_keras.config import EvaluateConfig, Experiment
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.sampling import random_generator
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.features.video_features import VideoFeatures, joined
from hdc_keras.model import HDC
from hdc_keras.probes.nearest_neighbours import knn_votes, nearest
from hdc_keras.probes.protocol import judged_by_scores

# Our choice, with few clips of each video: enough to compare the epochs of a run, not to report a result. 400 classes
# take 3,200 videos.
_VIDEOS = 256  # for all label columns together
_VIDEOS_PER_CLASS = 8  # at least, if the class has so many; so 7 of its videos can be neighbours of the eighth
_CLASSES = 1000  # at most
_CLIPS = 2


class KnnCheck:
    """Classifies some training videos by their nearest neighbours among the others, every few epochs.

    Neighbours from the same group as a video, and so the video itself, do not count. Test videos are never read, so the
    best checkpoint can be evaluated on them.

    Args:
        model: the model in training.
        experiment: its `train.knn_every` and `evaluate` keys are the settings of the check.
        epochs: epochs of the whole run.
        records: videos with splits. There is no check of a label column if `choose_videos` finds none for it.
        store: decodes the videos.
        warn: called with a message if the videos have labels, but none of them can be checked.
    """

    def __init__(
        self,
        model: HDC,
        experiment: Experiment,
        epochs: int,
        records: Sequence[VideoRecord],
        store: FrameStore,
        warn: Callable[[str], None] = warnings.warn,
    ):
        self.encoder = ClipEncoder(model, experiment.data.decode_size)
        self.experiment = experiment
        self.epochs = epochs
        self.store = store
        self.chosen: dict[str, list[VideoRecord]] = {}
        if not experiment.train.knn_every:
            return
        train = [record for record in records if record.split == "train"]
        columns = list(dict.fromkeys(column for record in train for column in record.labels))
        found = {column: choose_videos(train, column, _VIDEOS // len(columns), experiment.seed) for column in columns}
        self.chosen = {column: videos for column, videos in found.items() if videos}
        if columns and not self.chosen:
            warn(
                f"There is no kNN check of {', '.join(columns)}: it needs two or more classes, each with training "
                "videos of two or more groups. The best checkpoint will be the one with the lowest loss."
            )

    def __call__(self, epoch: int) -> dict[str, float]:
        """Top-1 accuracy after an epoch, by column name `knn_train_{label column}`; empty if no check is due."""
        if not self.chosen or (epoch % self.experiment.train.knn_every and epoch != self.epochs):
            return {}
        # Pretraining itself counts the videos that cannot be decoded, so the check leaves them out.
        quick = self.experiment.model_copy(
            update={
                "evaluate": self.experiment.evaluate.model_copy(update={"clips": _CLIPS}),
                "data": self.experiment.data.model_copy(update={"max_failed_share": 1.0}),
            }
        )
        videos = {record.video_id: record for chosen in self.chosen.values() for record in chosen}
        features = extract_features(self.encoder, list(videos.values()), quick, self.store)
        levels, settings = self.experiment.contrast.used_levels, self.experiment.evaluate
        decoded = {column: features.select(chosen) for column, chosen in self.chosen.items()}
        return {
            f"knn_train_{column}": accuracy_without_own_group(found, column, levels, settings)
            for column, found in decoded.items()
            if found.records
        }


def choose_videos(records: Sequence[VideoRecord], column: str, least: int, seed: int) -> list[VideoRecord]:
    """Draw the videos of a check: the same number of each class, from as many groups as possible.

    Args:
        records: training videos.
        column: the label column to check. Videos without it are left out.
        least: minimum number of videos, if there are as many.
        seed: seed of the draw, which does not depend on the order of `records`.

    Returns:
        The videos; empty if there are not two classes with videos of two groups. A video without a group forms a group
        by itself.
    """
    by_class: dict[str, dict[str, list[VideoRecord]]] = {}
    for record in sorted(records, key=lambda record: record.video_id):
        if column in record.labels:
            by_class.setdefault(record.labels[column], {}).setdefault(_group(record), []).append(record)
    usable = sorted(name for name, groups in by_class.items() if len(groups) > 1)
    if len(usable) < 2:
        return []
    draws = random_generator("kNN check", seed, column)
    usable = [usable[place] for place in sorted(draws.permutation(len(usable))[:_CLASSES])]
    per_class = max(_VIDEOS_PER_CLASS, math.ceil(least / len(usable)))
    chosen: list[VideoRecord] = []
    for name in usable:
        groups = [groups for _, groups in sorted(by_class[name].items())]
        groups = [[groups[i][j] for j in draws.permutation(len(groups[i]))] for i in draws.permutation(len(groups))]
        in_turn = chain.from_iterable(zip_longest(*groups))  # one video of each group, then a second one of each, ...
        chosen += [record for record in in_turn if record][:per_class]
    return chosen


def accuracy_without_own_group(
    features: VideoFeatures, column: str, levels: Sequence[str], settings: EvaluateConfig
) -> float:
    """Top-1 accuracy of the protocol `knn`, with every video as a query and the videos of other groups as neighbours.

    Args:
        features: features of labelled videos.
        column: the label column to predict.
        levels: the features to use.
        settings: number of neighbours, and temperature of their votes.
    """
    standardised, _ = joined(features, features, levels)
    unit = standardised / np.maximum(np.linalg.norm(standardised, axis=1, keepdims=True), 1e-12)
    groups = np.array([_group(record) for record in features.records])
    labels = [record.labels[column] for record in features.records]
    cosines = np.where(groups[:, None] == groups, -np.inf, unit @ unit.T)  # a vote of weight exp(-infinity) is none
    votes, classes = knn_votes(nearest(cosines, settings.knn_neighbours), labels, settings.knn_temperature)
    return judged_by_scores(votes, classes, labels).metrics["top1"]


def _group(record: VideoRecord) -> str:
    return record.group or record.video_id
