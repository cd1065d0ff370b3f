"""kNN classification and video retrieval, by cosine similarity."""

from collections.abc import Sequence

import numpy as np

from hdc_keras.features.video_features import joined
from hdc_keras.probes.protocol import Judgement, Protocol, Question, judged_by_scores

# Number of nearest training videos that a retrieval result lists for each test video (our choice).
_NEIGHBOURS_LISTED = 10


def cosine_similarity(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(queries, channels) and (gallery, channels) -> (queries, gallery) cosines."""
    return _unit(queries) @ _unit(gallery).T


def knn_votes(
    similarity: np.ndarray, gallery_labels: Sequence[str], neighbours: int, temperature: float
) -> tuple[np.ndarray, list[str]]:
    """Let the nearest gallery videos vote, weighted by `exp(cosine / temperature)` (Wu et al. 2018, arXiv 1805.01978).

    Args:
        similarity: (queries, gallery) cosines.
        gallery_labels: class of each gallery video.
        neighbours: number of videos that vote; the whole gallery if it has fewer.
        temperature: temperature of the weights.

    Returns:
        (queries, classes) votes, and the classes in alphabetical order.
    """
    classes, encoded = np.unique(np.array(gallery_labels), return_inverse=True)
    near = nearest(similarity, neighbours)
    weights = np.exp(np.take_along_axis(similarity, near, axis=1) / temperature)
    votes = np.zeros((len(similarity), len(classes)))
    for row, (columns, row_weights) in enumerate(zip(encoded[near], weights, strict=True)):
        np.add.at(votes[row], columns, row_weights)
    return votes, classes.tolist()


def recall_at(
    similarity: np.ndarray, query_labels: Sequence[str], gallery_labels: Sequence[str], ks: Sequence[int]
) -> dict[int, float]:
    """Recall at k: the share of queries with at least one video of their class among the k nearest gallery videos.

    Args:
        similarity: (queries, gallery) cosines.
        query_labels: class of each query.
        gallery_labels: class of each gallery video.
        ks: the values of k. A k larger than the gallery counts the whole gallery.

    Returns:
        Share in [0, 1] by k.
    """
    is_match = np.array(gallery_labels)[nearest(similarity, max(ks))] == np.array(query_labels)[:, None]
    return {k: float(is_match[:, :k].any(axis=1).mean()) for k in ks}


def nearest(similarity: np.ndarray, count: int) -> np.ndarray:
    """(queries, count) positions in the gallery, nearest first. Equal cosines keep the order of the gallery."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _knn(question: Question) -> Judgement:
    train, test = joined(question.train, question.test, question.names)
    settings = question.settings
    votes, classes = knn_votes(
        cosine_similarity(test, train), question.train_labels, settings.knn_neighbours, settings.knn_temperature
    )
    return judged_by_scores(votes, classes, question.test_labels)


def _retrieval(question: Question) -> Judgement:
    train, test = joined(question.train, question.test, question.names)
    similarity = cosine_similarity(test, train)
    recalls = recall_at(similarity, question.test_labels, question.train_labels, question.settings.recall_at)
    positions = nearest(similarity, _NEIGHBOURS_LISTED)
    return Judgement(
        {f"R@{k}": value for k, value in recalls.items()},
        [question.train_labels[row[0]] for row in positions],
        [[question.train.records[position].video_id for position in row] for row in positions],
    )


KNN = Protocol(
    1,
    "weighted vote of Wu et al., CVPR 2018 (arXiv 1805.01978) on standardised features, averaged over the views of a "
    "video",
    _knn,
    lambda settings: {"neighbours": settings.knn_neighbours, "temperature": settings.knn_temperature},
)
RETRIEVAL = Protocol(
    1,
    "video retrieval as in VCOP (Xu et al., CVPR 2019): each test video queries the training videos by cosine "
    "similarity, a hit if any of the k nearest has its class; standardised features, averaged over the views of a "
    "video",
    _retrieval,
    lambda settings: {"recall_at": list(settings.recall_at)},
)
