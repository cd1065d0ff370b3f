"""One of several label columns, and few labels of it."""

import pytest

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.data.records import VideoRecord, with_few_labels
from hdc_keras.errors import ConfigError


@pytest.fixture
def manifest(tmp_path):
    """16 videos: all of one colour but the last four, and of four motions."""
    lines = ["path,label_colour,label_motion"]
    for number in range(16):
        (tmp_path / f"{number}.mp4").touch()
        lines.append(f"{number}.mp4,{'red' if number < 12 else 'blue'},{'abcd'[number % 4]}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return str(tmp_path / "manifest.csv")


def test_the_split_is_that_of_the_chosen_label(manifest):
    experiment = Experiment.model_validate({"data": {"path": manifest, "holdout": 0.25}})

    by_motion = load_videos(experiment, label="motion").records

    assert {tuple(one.labels) for one in by_motion} == {("motion",)}
    assert sorted(one.label for one in by_motion if one.split == "test") == ["a", "b", "c", "d"]
    by_colour = [one.label for one in load_videos(experiment, label="colour").records if one.split == "test"]
    assert sorted(by_colour) == ["blue", "red", "red", "red"]
    with pytest.raises(ConfigError, match=r"--label motoin(.|\n)*motion(.|\n)*Known: colour, motion"):
        load_videos(experiment, label="motoin")


def test_few_labels_are_those_of_training_and_validation_together():
    records = [
        VideoRecord(f"{number}.mp4", f"{number}", {"label": "ab"[number % 2]}, split)
        for number, split in enumerate(["train"] * 12 + ["val"] * 8 + ["test"] * 6)
    ]

    kept = with_few_labels(records, 3, seed=0)

    assert [one for one in kept if one.split == "test"] == records[20:]
    for label in "ab":
        assert sum(one.label == label for one in kept if one.split != "test") == 3
    assert with_few_labels(records, 3, seed=0) == kept != with_few_labels(records, 3, seed=1)
