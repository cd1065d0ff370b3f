import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity as reference_cosine
from sklearn.neighbors import KNeighborsClassifier

from hdc_keras.probes.nearest_neighbours import cosine_similarity, knn_votes, recall_at

RNG = np.random.default_rng(0)


def knn_predict(similarity, gallery_labels, neighbours, temperature):
    votes, classes = knn_votes(similarity, gallery_labels, neighbours, temperature)
    return [classes[row] for row in votes.argmax(axis=1)]


def test_cosines_equal_scikit_learns():
    queries, gallery = RNG.normal(size=(5, 7)), RNG.normal(size=(9, 7))

    np.testing.assert_allclose(cosine_similarity(queries, gallery), reference_cosine(queries, gallery), atol=1e-6)


def test_recall_equals_a_loop():
    similarity = RNG.normal(size=(20, 30))
    query_labels, gallery_labels = RNG.choice(list("abcd"), 20), RNG.choice(list("abcd"), 30)

    for k, share in recall_at(similarity, query_labels, gallery_labels, (1, 3, 10)).items():
        hits = 0
        for row, label in zip(similarity, query_labels, strict=True):
            nearest = sorted(range(30), key=lambda i: -row[i])[:k]
            hits += any(gallery_labels[i] == label for i in nearest)
        assert share == hits / 20


def test_recall_by_hand_with_a_tie_and_a_k_beyond_the_gallery():
    similarity = np.array([[0.9, 0.9, 0.1], [0.2, 0.1, 0.0]])

    # Equal cosines keep the gallery's order: the first query sees `b` first.
    assert recall_at(similarity, ["a", "c"], ["b", "a", "b"], (1, 2, 50)) == {1: 0.0, 2: 0.5, 50: 0.5}


def test_knn_equals_scikit_learns_weighted_vote():
    gallery, queries = RNG.normal(size=(60, 5)), RNG.normal(size=(25, 5))
    labels = RNG.choice(list("abc"), 60)
    reference = KNeighborsClassifier(
        9, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(gallery, labels)

    predicted = knn_predict(cosine_similarity(queries, gallery), labels, 9, 0.07)

    assert (np.array(predicted) == reference.predict(queries)).all()


def test_one_very_near_neighbour_outvotes_two_far_ones():
    similarity = np.array([[0.99, 0.1, 0.1]])

    assert knn_predict(similarity, ["a", "b", "b"], 3, 0.07) == ["a"]
    assert knn_predict(similarity, ["a", "b", "b"], 3, 100.0) == ["b"]


@pytest.mark.parametrize("neighbours", [1, 100])
def test_knn_takes_what_the_gallery_has(neighbours):
    assert knn_predict(np.array([[1.0, 0.5]]), ["a", "b"], neighbours, 0.07) == ["a"]


def test_votes_by_hand_with_ties():
    # Equal cosines: the gallery's order decides who is among the two nearest; equal votes: the alphabet does.
    assert knn_predict(np.array([[0.5, 0.5, 0.5]]), ["c", "b", "b"], 1, 1.0) == ["c"]
    assert knn_predict(np.array([[0.5, 0.5, 0.5]]), ["c", "b", "b"], 2, 1.0) == ["b"]
    assert knn_predict(np.array([[0.5, 0.5, 0.5]]), ["c", "c", "b"], 3, 1.0) == ["c"]
