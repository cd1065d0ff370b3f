"""The kNN check: which videos it reads, and what it measures."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hdc_keras.config import EvaluateConfig
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.data.records import VideoRecord
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.training.knn_check import accuracy_without_own_group, choose_videos
from hdc_keras.training.pretraining import pretrain
from tests.training.small_runs import experiment_on, run_of


def videos_of(classes, per_class, per_group=1, column="label"):
    """Videos 0, 1, ... of each class; each group holds `per_group` videos in a row."""
    return [
        VideoRecord("", f"{name}/{i:03}", {column: name}, "train", f"{name}_g{i // per_group}")
        for name in map(str, range(classes))
        for i in range(per_class)
    ]


def counts(records):
    return Counter(Counter(record.label for record in records).values())


@pytest.mark.parametrize(("classes", "each"), [(2, 128), (6, 43), (10, 26), (101, 8), (400, 8)])
def test_every_class_gets_the_same_number_of_videos_and_enough_neighbours(classes, each):
    assert counts(choose_videos(videos_of(classes, 200), "label", 256, 0)) == {each: classes}


def test_small_sets_are_used_completely():
    records = videos_of(4, 9)

    assert counts(choose_videos(records, "label", 256, 0)) == {9: 4}


def test_cost_is_bounded_for_any_number_of_classes():
    assert counts(choose_videos(videos_of(1500, 9), "label", 256, 0)) == {8: 1000}


def test_videos_come_from_as_many_groups_as_possible():
    chosen = choose_videos(videos_of(101, 100, per_group=10), "label", 256, 0)

    assert set(Counter(record.group for record in chosen).values()) == {1}
    assert len(chosen) == 808


def test_the_draw_depends_only_on_set_and_seed():
    records = videos_of(20, 50, per_group=5)
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]

    first = choose_videos(records, "label", 256, 0)

    assert choose_videos(shuffled, "label", 256, 0) == first != choose_videos(records, "label", 256, 1)


def test_classes_of_one_group_are_left_out_and_one_class_is_not_enough():
    lonely = [VideoRecord("", f"lonely/{i}", {"label": "lonely"}, "train", "lonely") for i in range(5)]

    assert counts(choose_videos([*videos_of(2, 5), *lonely], "label", 256, 0)) == {5: 2}
    assert choose_videos([*videos_of(1, 5), *lonely], "label", 256, 0) == []
    assert choose_videos(videos_of(2, 5), "motion", 256, 0) == []


def test_the_accuracy_equals_a_slow_reference():
    rng, records = np.random.default_rng(0), videos_of(3, 20, per_group=4)
    features = {name: rng.normal(size=(60, 6)) + np.eye(6)[np.repeat(range(3), 20)] for name in ("P2", "P3")}
    features["P3"] = features["P3"] * 50 + 9  # standardised before they are joined
    settings = EvaluateConfig(knn_neighbours=5)

    found = accuracy_without_own_group(VideoFeatures(records, features, 60, {}), "label", ["P2", "P3"], settings)

    rows = np.concatenate([(a - a.mean(axis=0)) / a.std(axis=0) for a in features.values()], axis=1)
    hits = 0
    for query, vector in zip(records, rows, strict=True):
        cosines = [
            (vector @ other / np.linalg.norm(vector) / np.linalg.norm(other), record.label)
            for record, other in zip(records, rows, strict=True)
            if record.group != query.group
        ]
        votes = Counter()
        for cosine, label in sorted(cosines, reverse=True)[:5]:
            votes[label] += np.exp(cosine / 0.07)
        hits += max(votes, key=votes.get) == query.label
    assert found == hits / 60 and 0.4 < found < 0.9


@pytest.mark.parametrize("grouped", [False, True])
def test_a_query_does_not_find_its_own_group(grouped):
    """Pairs of equal videos: with its twin among the neighbours, every query would be right."""
    records = videos_of(2, 40, per_group=2)
    if not grouped:
        records = [replace(record, group=None) for record in records]
    rows = np.random.default_rng(0).normal(size=(40, 8)).repeat(2, axis=0)

    found = accuracy_without_own_group(VideoFeatures(records, {"P2": rows}, 80, {}), "label", ["P2"], EvaluateConfig())

    assert found == 1 if not grouped else 0.2 < found < 0.8


def test_no_test_video_is_read_to_choose_the_best_checkpoint(class_folder, tmp_path):
    experiment = experiment_on(class_folder, epochs=1, knn_every=1)
    records = load_videos(experiment).records
    for record in records:
        if record.split == "test":
            (tmp_path / "unreadable.mp4").write_text("a test video")
            records[records.index(record)] = replace(record, path=str(tmp_path / "unreadable.mp4"))
    run = run_of(tmp_path, experiment)

    outcome = pretrain(experiment, run, records)

    assert outcome.finished and not outcome.failed_videos
    assert json.loads((run.path / "best.json").read_text())["by"] == "knn_train"
    assert 0 <= float(run.read_metrics()[0]["knn_train_label"]) <= 1


@pytest.mark.parametrize(
    ("labels", "notes"), [({"label": "same"}, 1), ({}, 0)], ids=["labels without two classes", "no labels"]
)
def test_without_two_classes_the_loss_chooses_and_a_note_says_so(class_folder, tmp_path, labels, notes):
    experiment = experiment_on(class_folder, epochs=1, knn_every=1)
    records = [replace(record, labels=labels) for record in load_videos(experiment).records]
    run, said = run_of(tmp_path, experiment), []

    pretrain(experiment, run, records, warn=said.append)

    assert json.loads((run.path / "best.json").read_text())["by"] == "loss"
    assert len(said) == notes
    for note in said:
        assert note.startswith("There is no kNN check of label: it needs two or more classes") and "lowest loss" in note
