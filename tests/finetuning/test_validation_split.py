import pytest

from hdc_keras.data.records import VideoRecord
from hdc_keras.finetuning.validation_split import hold_out


@pytest.fixture
def records():
    """Twelve training videos of each class, in groups of three."""
    return [
        VideoRecord(f"{label}{i}", f"{label}{i}", {"label": label}, "train", f"{label}{i // 3}")
        for label in "ab"
        for i in range(12)
    ]


def test_a_share_of_each_class_is_held_out_in_whole_groups(records):
    train, validation = hold_out(records, 0.25, "label", 0)

    assert {record.group for record in train}.isdisjoint({record.group for record in validation})
    assert sorted(record.labels["label"] for record in validation) == list("aaabbb")
    assert sorted(record.video_id for record in train + validation) == sorted(r.video_id for r in records)


def test_test_videos_are_neither_trained_on_nor_held_out(records):
    test = VideoRecord("t", "t", {"label": "a"}, "test")

    train, validation = hold_out([*records, test], 0.25, "label", 0)

    assert test not in train and test not in validation


def test_the_val_split_of_a_set_is_used_unless_no_validation_is_wanted(records):
    with_val = [*records, VideoRecord("v", "v", {"label": "a"}, "val")]

    assert hold_out(with_val, 0.25, "label", 0) == (records, with_val[-1:])
    assert hold_out(with_val, 0.0, "label", 0) == (records, [])


def test_nothing_is_held_out_if_a_class_has_a_single_group(records):
    one_group_each = [record for record in records if record.group.endswith("0")]

    assert hold_out(one_group_each, 0.25, "label", 0) == (one_group_each, [])
