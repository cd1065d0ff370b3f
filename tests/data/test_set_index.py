import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hdc_keras.data import set_index
from hdc_keras.data.preparing import prepare, verify, write_report
from hdc_keras.data.records import read_records
from hdc_keras.data.set_index import SET_INDEX, index_writer, read_index
from hdc_keras.data.shards import read_prepared
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import DataError
from tests.conftest import numbered_frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five videos that differ in all that is known of a video, and one that cannot be decoded."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_video(folder / f"{number}.mp4", numbered_frames(12 + number, (32, 48)), rate=(25, 30)[number % 2])
    (folder / "bad.mp4").write_text("not a video")
    known = [
        {"labels": {"motion": "left", "appearance": "dots"}, "split": "train", "group": "größe"},
        {"labels": {"motion": "right", "appearance": "dots"}, "split": "test"},
        {"labels": {"appearance": "dots", "motion": "left"}, "group": "g"},
        {"segment": (0.1, 0.4)},
        {},
        {"labels": {"motion": "left"}, "split": "val", "segment": (0.0, 1.0)},
    ]
    return [replace(record, **facts) for record, facts in zip(read_records(folder), known, strict=True)]


@pytest.fixture
def prepared(videos, tmp_path):
    prepare(videos, tmp_path / "set", size=(32, 48), videos_per_shard=2, processes=1)
    return tmp_path / "set"


def test_the_index_says_what_the_indexes_of_the_shards_say(prepared, videos, monkeypatch):
    from_index = read_prepared(prepared)
    (prepared / SET_INDEX).rename(prepared / "elsewhere")
    from_shards = read_prepared(prepared)

    assert from_index[0] == from_shards[0]
    assert from_index[1] == [{key: failure[key] for key in from_index[1][0]} for failure in from_shards[1]]
    assert [replace(record, stored=None) for record in from_index[0]] == videos[:5]
    assert [list(record.labels) for record in from_index[0]][:3:2] == [
        ["motion", "appearance"],
        ["appearance", "motion"],
    ]
    assert [failure["video_id"] for failure in from_index[1]] == ["bad.mp4"]


def test_the_index_is_written_and_read_in_pieces(prepared, monkeypatch):
    whole = (prepared / SET_INDEX).read_bytes()
    expected = read_prepared(prepared)

    monkeypatch.setattr(set_index, "_ROWS", 2)
    (prepared / SET_INDEX).unlink()
    with index_writer(prepared / SET_INDEX, json.loads((prepared / "prepared.json").read_text())["listing"]) as add:
        for number, file in enumerate(sorted(prepared.glob("shard-*.json"))):
            add(number, json.loads(file.read_text()))

    assert read_prepared(prepared) == expected
    assert (prepared / SET_INDEX).read_bytes() != whole and set_index.same_index(
        (prepared / SET_INDEX).read_bytes(), whole
    )


def test_equal_labels_and_splits_of_many_videos_are_one_object(tmp_path):
    video = {"labels": {"label": "a"}, "split": "train", "group": "g", "path": "p", "video_id": "v"}
    stored = {"offset": 0, "size": 1, "table": 0, "frames": 1, "rate": 25.0, "height": 8, "width": 8}
    with index_writer(tmp_path / SET_INDEX, "x") as add:
        add(0, {"videos": [video | stored] * 3, "failed": []})

    records, _, written = read_index(str(tmp_path / SET_INDEX), "x", ["shard"])

    assert len({id(record.labels) for record in records}) == len({id(record.split) for record in records}) == 1
    assert written == [1] and records[0].stored.shard == "shard"


def test_an_index_of_another_set_or_a_damaged_one_is_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "other")
    with index_writer(tmp_path / "other" / SET_INDEX, "another listing"):
        pass
    (prepared / SET_INDEX).write_bytes((prepared / SET_INDEX).read_bytes()[:-20])

    with pytest.raises(DataError, match=r"index.parquet: does not belong to the set .* Remove it and run"):
        read_prepared(tmp_path / "other")
    with pytest.raises(DataError, match=r"index.parquet: cannot be read .* Remove it and run"):
        read_prepared(prepared)
    assert verify(prepared) == ["index.parquet: differs from the indexes of the shards. Remove it and prepare again"]


def test_a_shard_that_is_prepared_again_removes_the_index_until_the_set_is_complete(prepared, videos, monkeypatch):
    """Deleting the index of a shard is how failed videos are tried again."""
    from hdc_keras.data import preparing

    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    (prepared / "shard-00001-of-00003.json").unlink()

    def killed(*_):
        assert not (prepared / SET_INDEX).exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(preparing, "write_shard", killed)
        prepare(videos, prepared, size=(32, 48), videos_per_shard=2, processes=1)
    with pytest.raises(DataError, match="1 of 3 shards are missing"):
        read_prepared(prepared)
    prepare(videos, prepared, size=(32, 48), videos_per_shard=2, processes=1)

    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == before


def test_a_set_whose_index_was_not_copied_is_read_all_the_same(prepared):
    expected = read_prepared(prepared)[0]
    (prepared / SET_INDEX).unlink()

    assert read_prepared(prepared)[0] == expected
    assert verify(prepared) == []


def test_a_set_of_an_earlier_version_gets_an_index(tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "prepared-0.1.0", tmp_path / "old")
    expected = read_prepared(tmp_path / "old")

    write_report(str(tmp_path / "old"))

    assert (tmp_path / "old" / SET_INDEX).exists()
    assert read_prepared(tmp_path / "old") == expected
    assert verify(tmp_path / "old") == []


def test_a_shard_without_any_good_video_is_empty(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.mp4").write_text("not a video")
    write_video(tmp_path / "2.mp4", numbered_frames(12, (32, 48)))

    prepare(read_records(tmp_path), tmp_path / "set", size=(32, 48), videos_per_shard=2, processes=1)

    records, failed = read_prepared(tmp_path / "set")
    assert [record.video_id for record in records] == ["2.mp4"] and len(failed) == 2
    assert np.array([(tmp_path / "set" / "shard-00000-of-00002.tfrecord").stat().st_size]) == [0]
