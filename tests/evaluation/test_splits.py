from collections import Counter

import pytest

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import ConfigError, DataError
from hdc_keras.evaluation.splits import load_splits, with_labels_per_class
from tests.evaluation.conftest import experiment_on


def test_the_official_splits_have_different_test_videos(ucf101):
    splits, _ = load_splits(experiment_on(ucf101), "all")

    for number in ("1", "2", "3"):
        test = [record.video_id for record in splits[number] if record.split == "test"]
        assert len(splits[number]) == 18 and len(test) == 6
        assert all(f"_g0{number}_" in video_id for video_id in test)


def test_a_set_without_official_splits_is_refused(class_folder_once):
    experiment = experiment_on(class_folder_once)

    with pytest.raises(DataError, match="has no official splits"):
        load_splits(experiment, "all")
    with pytest.raises(ConfigError, match="expected own or all"):
        load_splits(experiment, "2")


def test_few_labels_limit_training_videos_but_not_test_videos():
    records = [
        VideoRecord(f"{label}{i}", f"{label}{i}", {"label": label}, "test" if i < 5 else "train")
        for label in "ab"
        for i in range(15)
    ]

    kept = with_labels_per_class(records, experiment_on("anywhere", labels_per_class=3))

    assert Counter((record.label, record.split) for record in kept) == {
        ("a", "train"): 3,
        ("b", "train"): 3,
        ("a", "test"): 5,
        ("b", "test"): 5,
    }
    assert {record.video_id for record in with_labels_per_class(records, experiment_on("anywhere"))} == {
        record.video_id for record in records
    }
