from dataclasses import replace

import numpy as np
import pytest

from hdc_keras.config import EvaluateConfig
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes import nearest_neighbours
from hdc_keras.probes.registry import PROBES, chance, feature_sources, judge, untrained_classes
from tests.probes.made_features import made_features

SETTINGS = EvaluateConfig(knn_neighbours=5, linear_l2=(1e-2,))

# The metric of each protocol, and features from which it can predict the shape.
READABLE = {
    "linear": ("top1", "scaled"),
    "linear-cvrl": ("top1", "direction"),
    "linear-severe": ("top1", "direction"),
    "knn": ("top1", "scaled"),
    "retrieval": ("R@1", "scaled"),
    "retrieval-vcop": ("R@1", "direction"),
    "lowlabel": ("top1, 5 per class", "scaled"),
    "factors": ("top1", "scaled"),
}


def metrics_of(protocol, features, sources):
    """Metrics by label column and source."""
    found = {}
    for answer in judge(protocol, features, {source: [source] for source in sources}, SETTINGS):
        found.setdefault(answer.column, {})[answer.source] = answer.judgement.metrics
    return found


@pytest.mark.parametrize("protocol", PROBES)
def test_every_protocol_predicts_a_label_only_from_features_that_encode_it(protocol):
    metric, informative = READABLE[protocol]
    # SEVERE trains for ten epochs, in which a few videos are not enough to learn anything.
    features = made_features(per_class=300 if protocol == "linear-severe" else 12)

    metrics = metrics_of(protocol, features, [informative, "noise"])

    assert metrics["shape"][informative][metric] >= 0.9
    assert metrics["shape"]["noise"][metric] < 0.65
    assert metrics["half"][informative][metric] < 0.8


def test_sources_are_all_levels_each_level_and_each_task():
    pairs = [("P2", "spatial"), ("P2", "temporal"), ("P5", "temporal")]
    sources = {
        "features": ["P2", "P5"],
        "P2": ["P2"],
        "P5": ["P5"],
        "spatial embeddings": ["P2_spatial"],
        "temporal embeddings": ["P2_temporal", "P5_temporal"],
        "all embeddings": ["P2_spatial", "P2_temporal", "P5_temporal"],
    }
    assert feature_sources("linear", ["P2", "P5"], pairs) == sources
    assert feature_sources("factors", ["P2", "P5"], pairs) == sources | {
        "P2 spatial embedding": ["P2_spatial"],
        "P2 temporal embedding": ["P2_temporal"],
        "P5 temporal embedding": ["P5_temporal"],
    }


@pytest.mark.parametrize("protocol", ["linear-cvrl", "linear-severe", "retrieval-vcop"])
def test_features_of_a_published_protocol_are_those_of_the_last_level(protocol):
    assert feature_sources(protocol, ["P2", "P5"], []) == {"features": ["P5"], "P2": ["P2"], "P5": ["P5"]}


def test_neighbours_are_searched_once_for_all_label_columns(monkeypatch):
    searched = []
    search = nearest_neighbours.nearest_neighbours
    monkeypatch.setattr(nearest_neighbours, "nearest_neighbours", lambda *args: searched.append(args) or search(*args))
    features = made_features()

    together = {
        protocol: judge(protocol, features, {"a": ["scaled"], "b": ["noise"]}, SETTINGS)
        for protocol in ("knn", "retrieval", "retrieval-vcop")
    }

    assert len(searched) == 3 * 2  # three protocols, two sources, two label columns
    for protocol, answers in together.items():
        assert [(answer.column, answer.source) for answer in answers] == [
            (column, source) for column in ("shape", "half") for source in "ab"
        ]
        records = [replace(record, labels={"half": record.labels["half"]}) for record in features.records]
        alone = judge(protocol, replace(features, records=records), {"a": ["scaled"]}, SETTINGS)
        assert alone[0].judgement == answers[2].judgement


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e20])
@pytest.mark.parametrize("protocol", PROBES)
def test_features_of_a_diverged_network_are_refused(protocol, value):
    features = made_features()
    features.arrays["noise"][1, 2] = value

    with pytest.raises(DataError, match=r"the features noise are non-finite or larger than 1e[+]15: .* diverged"):
        judge(protocol, features, {"features": ["noise"]}, SETTINGS)


def test_classes_without_training_videos_are_found():
    records = [VideoRecord(f"{i}", f"{i}", {"label": label}, "train") for i, label in enumerate("ab")]
    records += [VideoRecord(f"{label}", f"{label}", {"label": label[0]}, "test") for label in ("a1", "d", "c1", "c2")]

    assert untrained_classes(records, "label") == {"c": 2, "d": 1}


def test_several_arrays_are_concatenated():
    features = made_features(columns=("shape",))

    together, alone = (
        judge("knn", features, {"source": names}, SETTINGS)[0].judgement.metrics["top1"]
        for names in (["noise", "direction"], ["noise"])
    )

    assert together >= 0.9 > 0.65 > alone


def test_seeds_repeat_only_protocols_that_are_random():
    features, sources = made_features(columns=("shape",)), {"direction": ["direction"]}

    assert [answer.seed for answer in judge("knn", features, sources, SETTINGS, seeds=(7, 8))] == [7]
    assert [answer.seed for answer in judge("linear-cvrl", features, sources, SETTINGS, seeds=(7, 8))] == [7, 8]


def test_progress_counts_label_columns_and_sources():
    reported = []
    sources = {"direction": ["direction"], "noise": ["noise"]}

    judge("knn", made_features(), sources, SETTINGS, progress=lambda *done: reported.append(done))

    assert reported == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_factors_need_two_label_columns():
    with pytest.raises(DataError, match="the videos have only `shape`"):
        judge("factors", made_features(columns=("shape",)), {"noise": ["noise"]}, SETTINGS)


def test_unlabelled_videos_are_refused():
    features = made_features()
    records = [VideoRecord(record.path, record.video_id, {}, record.split) for record in features.records]

    with pytest.raises(DataError, match="no labels"):
        judge("knn", replace(features, records=records), {"noise": ["noise"]}, SETTINGS)


def test_a_set_without_test_videos_is_refused():
    records = [VideoRecord(name, name, {"label": name}, "train") for name in "ab"]
    features = VideoFeatures(records, {"P5": np.zeros((2, 3))}, 2, {})

    with pytest.raises(DataError, match="2 training and 0 test videos"):
        judge("knn", features, {"P5": ["P5"]}, SETTINGS)


def test_a_single_class_is_refused():
    features = made_features()
    records = [replace(record, labels={"shape": "a"}) for record in features.records]

    with pytest.raises(DataError, match="the same `shape`, a"):
        judge("knn", replace(features, records=records), {"noise": ["noise"]}, SETTINGS)


def test_chance_is_the_share_of_the_most_frequent_test_class():
    features = made_features(columns=("shape",))
    labels = {"0": "b", "3": "b"}  # two of the four test videos of class "a"
    records = [replace(r, labels={"shape": labels.get(r.video_id, r.labels["shape"])}) for r in features.records]

    assert chance(features, "shape") == pytest.approx(4 / 12)
    assert chance(replace(features, records=records), "shape") == pytest.approx(6 / 12)
