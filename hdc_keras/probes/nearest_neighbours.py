"""kNN classification and video retrieval, by cosine similarity."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hdc_keras.config import EvaluateConfig
from hdc_keras.features.video_features import VideoFeatures, joined
from hdc_keras.probes.protocol import (
    MEAN_CLASS_ACCURACY,
    Judgement,
    Protocol,
    Question,
    judged_by_scores,
    mean_class_accuracy,
)
from hdc_keras.probes.publication import Publication

# Number of nearest training videos that a retrieval result lists for each test video (our choice).
_NEIGHBOURS_LISTED = 10
# Cosines that are held in memory at once (float32, 400 MB with the copies that the search makes).
_COSINES_AT_ONCE = 32_000_000


class Neighbours(NamedTuple):
    """The nearest gallery videos of each query, nearest first. Equal cosines keep the order of the gallery.

    Attributes:
        positions: (queries, count) int64 positions in the gallery.
        cosines: (queries, count) cosines with them.
    """

    positions: np.ndarray
    cosines: np.ndarray


def nearest_neighbours(queries: np.ndarray, gallery: np.ndarray, count: int) -> Neighbours:
    """Find the `count` gallery videos with the highest cosine to each query; all if the gallery has fewer.

    Queries are processed in blocks, so the memory does not grow with queries times gallery.

    Args:
        queries: (queries, channels).
        gallery: (gallery, channels).
        count: number of neighbours.
    """
    queries, gallery = _unit(queries), _unit(gallery)
    size = max(1, _COSINES_AT_ONCE // len(gallery))
    blocks = [nearest(queries[first : first + size] @ gallery.T, count) for first in range(0, len(queries), size)]
    return Neighbours(*map(np.concatenate, zip(*blocks, strict=True)))


def nearest(similarity: np.ndarray, count: int) -> Neighbours:
    """The same for given (queries, gallery) cosines."""
    if count < similarity.shape[1]:
        # A full sort of every row would take most of the time.
        positions = np.argpartition(similarity, -count, axis=1)[:, -count:]
        limits = np.take_along_axis(similarity, positions, axis=1).min(axis=1)
        for row in np.flatnonzero((similarity >= limits[:, None]).sum(axis=1) > count):  # ties at the limit
            positions[row] = np.argsort(-similarity[row], kind="stable")[:count]
    else:
        positions = np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)
    positions = np.sort(positions, axis=1)
    cosines = np.take_along_axis(similarity, positions, axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return Neighbours(np.take_along_axis(positions, order, axis=1), np.take_along_axis(cosines, order, axis=1))


def knn_votes(near: Neighbours, gallery_labels: Sequence[str], temperature: float) -> tuple[np.ndarray, list[str]]:
    """Let neighbours vote, weighted by `exp(cosine / temperature)` (Wu et al. 2018, arXiv 1805.01978).

    Args:
        near: the gallery videos that vote for each query.
        gallery_labels: class of each gallery video.
        temperature: temperature of the weights.

    Returns:
        (queries, classes) votes, and the classes in alphabetical order.
    """
    classes, encoded = np.unique(np.array(gallery_labels), return_inverse=True)
    weights = np.exp(near.cosines / temperature)
    votes = np.zeros((len(weights), len(classes)))
    for row, (columns, row_weights) in enumerate(zip(encoded[near.positions], weights, strict=True)):
        np.add.at(votes[row], columns, row_weights)
    return votes, classes.tolist()


def recall_at(
    near: Neighbours, query_labels: Sequence[str], gallery_labels: Sequence[str], ks: Sequence[int]
) -> dict[int, float]:
    """Recall at k: the share of queries with at least one video of their class among the k nearest gallery videos.

    Args:
        near: the nearest gallery videos of each query, at least the highest k of them.
        query_labels: class of each query.
        gallery_labels: class of each gallery video.
        ks: the values of k. A k larger than the gallery counts the whole gallery.

    Returns:
        Share in [0, 1] by k.
    """
    is_match = np.array(gallery_labels)[near.positions] == np.array(query_labels)[:, None]
    return {k: float(is_match[:, :k].any(axis=1).mean()) for k in ks}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _nearest_standardised(
    train: VideoFeatures, test: VideoFeatures, names: Sequence[str], settings: EvaluateConfig
) -> Neighbours:
    gallery, queries = joined(train, test, names)
    return nearest_neighbours(queries, gallery, _listed(settings))


def _nearest(train: VideoFeatures, test: VideoFeatures, names: Sequence[str], settings: EvaluateConfig) -> Neighbours:
    gallery, queries = (np.concatenate([side.arrays[name] for name in names], axis=1) for side in (train, test))
    return nearest_neighbours(queries, gallery, _listed(settings))


def _nearest_voters(
    train: VideoFeatures, test: VideoFeatures, names: Sequence[str], settings: EvaluateConfig
) -> Neighbours:
    gallery, queries = joined(train, test, names)
    return nearest_neighbours(queries, gallery, settings.knn_neighbours)


def _listed(settings: EvaluateConfig) -> int:
    return max(*settings.recall_at, _NEIGHBOURS_LISTED)


def _knn(question: Question) -> Judgement:
    votes, classes = knn_votes(question.prepared, question.train_labels, question.settings.knn_temperature)
    return judged_by_scores(votes, classes, question.test_labels)


def _retrieval(question: Question) -> Judgement:
    near: Neighbours = question.prepared
    train_labels, test_labels = question.train_labels, question.test_labels
    recalls = recall_at(near, test_labels, train_labels, question.settings.recall_at)
    listed = near.positions[:, :_NEIGHBOURS_LISTED]
    predicted = [train_labels[row[0]] for row in listed]
    return Judgement(
        {f"R@{k}": value for k, value in recalls.items()}
        | {MEAN_CLASS_ACCURACY: mean_class_accuracy(predicted, test_labels)},
        predicted,
        [[question.train.records[position].video_id for position in row] for row in listed],
    )


KNN = Protocol(
    1,
    "our choice: the vote of Wu et al., CVPR 2018 (arXiv 1805.01978), with 20 neighbours (there 200) on standardised "
    "features, averaged over the views of a video",
    _knn,
    lambda settings: {"neighbours": settings.knn_neighbours, "temperature": settings.knn_temperature},
    prepare=_nearest_voters,
)
RETRIEVAL = Protocol(
    1,
    "our choice: each test video queries the training videos by cosine similarity, a hit if any of the k nearest has "
    "its class; standardised features, averaged over the views of a video. `retrieval-vcop` does not standardise",
    _retrieval,
    lambda settings: {"recall_at": list(settings.recall_at)},
    prepare=_nearest_standardised,
)
RETRIEVAL_VCOP = Protocol(
    1,
    "VCOP (Xu et al., CVPR 2019), as its code, retrieve_clips.py: each test video queries the training videos by "
    "cosine similarity, a hit if any of the k nearest has its class; averaged over the views of a video",
    _retrieval,
    lambda settings: {"recall_at": list(settings.recall_at)},
    Publication(
        {"frames": 16, "stride": 1, "size": 112, "views": "10x1"},
        {
            "pooling of the last level": ("maximum over 2 x 2 pixels, flattened", "mean over time and space"),
            "pixels": ("in [0, 1]", "mean and deviation of Kinetics"),
        },
    ),
    prepare=_nearest,
    uses_last_level=True,
)
