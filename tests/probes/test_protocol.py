import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from hdc_keras.config import EvaluateConfig
from hdc_keras.data.records import VideoRecord
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.protocol import Question, judged_by_scores, mean_class_accuracy


def test_top1_and_top5_equal_scikit_learn():
    random = np.random.default_rng(1)
    scores, classes = random.normal(size=(50, 8)), list("abcdefgh")
    labels = random.choice(classes, 50)

    judgement = judged_by_scores(scores, classes, labels)

    for name, k in (("top1", 1), ("top5", 5)):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=classes)
        assert judgement.metrics[name] == pytest.approx(expected)
    assert judgement.metrics["top1"] == accuracy_score(labels, judgement.predicted)


def test_ties_go_to_the_first_class_and_unknown_classes_are_wrong():
    scores = np.array([[1.0, 1.0], [0.0, 2.0], [3.0, 0.0]])

    judgement = judged_by_scores(scores, ["a", "b"], ["b", "b", "not a training class"])

    # Two classes: no top-5.
    assert judgement.predicted == ["a", "b", "a"]
    assert judgement.metrics == {"top1": pytest.approx(1 / 3), "mean_class_accuracy": pytest.approx(1 / 4)}


def test_mean_class_accuracy_equals_the_balanced_accuracy_of_scikit_learn():
    random = np.random.default_rng(2)
    labels, predicted = random.choice(list("abc"), 60, p=[0.8, 0.15, 0.05]), random.choice(list("abc"), 60)

    assert mean_class_accuracy(predicted, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    # Nine of ten videos are right, but all of one class are wrong.
    assert mean_class_accuracy("aaaaaaaaaa", "aaaaaaaaab") == 0.5


def test_a_video_without_a_group_forms_a_group_by_itself():
    records = [VideoRecord("x", "x", {"label": "a"}, "train", "one"), VideoRecord("y", "y", {"label": "b"}, "train")]
    train = VideoFeatures(records, {}, 2, {})
    question = Question(train, train, [], "label", EvaluateConfig(), 0)

    assert question.train_groups == ["one", "y"] and question.train_labels == ["a", "b"]
