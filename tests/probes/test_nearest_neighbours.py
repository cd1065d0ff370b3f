import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity as reference_cosine
from sklearn.neighbors import KNeighborsClassifier

from hdc_keras.config import EvaluateConfig
from hdc_keras.features.video_features import joined
from hdc_keras.probes import nearest_neighbours as module
from hdc_keras.probes.nearest_neighbours import knn_votes, nearest, nearest_neighbours, recall_at
from hdc_keras.probes.registry import judge
from tests.probes.made_features import made_features

RNG = np.random.default_rng(0)


def knn_predict(similarity, gallery_labels, neighbours, temperature):
    votes, classes = knn_votes(nearest(similarity, neighbours), gallery_labels, temperature)
    return [classes[row] for row in votes.argmax(axis=1)]


@pytest.mark.parametrize("at_once", [1, 20, 32_000_000])  # one query, two queries or all in a block
def test_neighbours_equal_a_full_sort_of_the_cosines_of_scikit_learn(monkeypatch, at_once):
    monkeypatch.setattr(module, "_COSINES_AT_ONCE", at_once)
    queries, gallery = RNG.normal(size=(5, 7)), RNG.normal(size=(9, 7))
    cosines = reference_cosine(queries, gallery)

    for count in (1, 4, 9, 50):
        near = nearest_neighbours(queries, gallery, count)
        order = np.argsort(-cosines, axis=1)[:, :count]
        np.testing.assert_array_equal(near.positions, order)
        np.testing.assert_allclose(near.cosines, np.take_along_axis(cosines, order, axis=1), atol=1e-6)


def test_equal_cosines_keep_the_order_of_the_gallery():
    similarity = RNG.integers(0, 4, (50, 30)).astype("float32")  # many ties, also at the last neighbour

    for count in (1, 7, 29, 30):
        expected = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(nearest(similarity, count).positions, expected)


def test_recall_equals_a_loop():
    similarity = RNG.normal(size=(20, 30))
    query_labels, gallery_labels = RNG.choice(list("abcd"), 20), RNG.choice(list("abcd"), 30)

    found = recall_at(nearest(similarity, 10), query_labels, gallery_labels, (1, 3, 10))

    for k, share in found.items():
        hits = 0
        for row, label in zip(similarity, query_labels, strict=True):
            first = sorted(range(30), key=lambda i: -row[i])[:k]
            hits += any(gallery_labels[i] == label for i in first)
        assert share == hits / 20


def test_recall_by_hand_with_a_tie_and_a_k_beyond_the_gallery():
    similarity = np.array([[0.9, 0.9, 0.1], [0.2, 0.1, 0.0]])

    # Equal cosines keep the order of the gallery, so `b` is nearest to the first query.
    near = nearest(similarity, 50)
    assert recall_at(near, ["a", "c"], ["b", "a", "b"], (1, 2, 50)) == {1: 0.0, 2: 0.5, 50: 0.5}


def test_knn_equals_the_weighted_vote_of_scikit_learn():
    gallery, queries = RNG.normal(size=(60, 5)), RNG.normal(size=(25, 5))
    labels = RNG.choice(list("abc"), 60)
    reference = KNeighborsClassifier(
        9, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(gallery, labels)

    predicted = knn_predict(reference_cosine(queries, gallery), labels, 9, 0.07)

    assert (np.array(predicted) == reference.predict(queries)).all()


def test_one_near_neighbour_outvotes_two_far_ones_at_a_low_temperature():
    similarity = np.array([[0.99, 0.1, 0.1]])

    assert knn_predict(similarity, ["a", "b", "b"], 3, 0.07) == ["a"]
    assert knn_predict(similarity, ["a", "b", "b"], 3, 100.0) == ["b"]


@pytest.mark.parametrize("neighbours", [1, 100])
def test_knn_works_with_a_gallery_smaller_than_k(neighbours):
    assert knn_predict(np.array([[1.0, 0.5]]), ["a", "b"], neighbours, 0.07) == ["a"]


def test_votes_by_hand_with_ties():
    # Among equal cosines, the first in the gallery are the nearest; among equal votes, the alphabet decides.
    assert knn_predict(np.array([[0.5, 0.5, 0.5]]), ["c", "b", "b"], 1, 1.0) == ["c"]
    assert knn_predict(np.array([[0.5, 0.5, 0.5]]), ["c", "b", "b"], 2, 1.0) == ["b"]
    assert knn_predict(np.array([[0.5, 0.5, 0.5]]), ["c", "c", "b"], 3, 1.0) == ["c"]


def test_retrieval_lists_the_nearest_training_videos():
    features = made_features(columns=("shape",))

    (answer,) = judge("retrieval", features, {"P5": ["scaled"]}, EvaluateConfig(recall_at=(1, 5)))

    train, test = joined(features.of_split("train"), features.of_split("test"), ["scaled"])
    order = np.argsort(-reference_cosine(test, train), axis=1)[:, :10]
    ids = np.array([record.video_id for record in features.of_split("train").records])
    assert answer.judgement.neighbours == ids[order].tolist()
    by_id = {record.video_id: record for record in features.records}
    for predicted, neighbours in zip(answer.judgement.predicted, answer.judgement.neighbours, strict=True):
        assert by_id[neighbours[0]].labels["shape"] == predicted and by_id[neighbours[0]].split == "train"
    assert list(answer.judgement.metrics) == ["R@1", "R@5", "mean_class_accuracy"]
