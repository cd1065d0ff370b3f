"""Nearest neighbours by cosine: kNN classification and retrieval."""

from collections.abc import Sequence

import numpy as np


def cosine_similarity(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(queries, gallery) float32 cosines."""
    return _unit(queries) @ _unit(gallery).T


def knn_votes(
    similarity: np.ndarray, gallery_labels: Sequence[str], neighbours: int, temperature: float
) -> tuple[np.ndarray, list[str]]:
    """Vote of the nearest training videos, weighted by `exp(cosine / temperature)` (Wu et al. 2018, arXiv 1805.01978).

    Args:
        similarity: (queries, gallery) cosines.
        gallery_labels: class of each gallery video.
        neighbours: how many vote; all of the gallery where it is smaller.
        temperature: of the weights.

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
    """Share of queries with at least one video of their class among the k nearest gallery videos.

    Returns:
        Share by k. A k larger than the gallery counts the whole gallery.
    """
    right = np.array(gallery_labels)[nearest(similarity, max(ks))] == np.array(query_labels)[:, None]
    return {k: float(right[:, :k].any(axis=1).mean()) for k in ks}


def nearest(similarity: np.ndarray, count: int) -> np.ndarray:
    """(queries, count) gallery positions, nearest first; equal cosines keep the gallery's order, so that results
    repeat."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
