"""Sets of Hugging Face `datasets` with a column of videos, written by that package."""

import json

import numpy as np
import pytest

from hdc_keras.config import DataConfig
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.decoding import decode
from hdc_keras.errors import DataError
from tests.conftest import frame_numbers
from tests.data.containers import video, write_parquet


def read(path, **options):
    return read_dataset(DataConfig(path=str(path), **options))


@pytest.fixture
def clips(tmp_path):
    return [video(tmp_path / "plain", f"v{number}.mp4", first=number) for number in range(6)]


@pytest.fixture
def dataset(clips):
    """Six videos of two classes, their bytes in a `Video` column, with a column that is not used."""
    from datasets import ClassLabel, Dataset, Features, Value, Video

    columns = {
        "video": [{"bytes": clip.read_bytes(), "path": clip.name} for clip in clips],
        "label": [0, 1, 0, 1, 0, -1],
        "caption": ["text"] * 6,
    }
    kinds = {"video": Video(decode=False), "label": ClassLabel(names=["walk", "run"]), "caption": Value("string")}
    return Dataset.from_dict(columns, features=Features(kinds))


def check(records, numbers):
    """Ids are the names of the files, and the first frames are those of the files."""
    assert [record.video_id for record in records] == [f"v{number}.mp4" for number in numbers]
    found = [frame_numbers(decode(record.path, np.array([0]))).item() for record in records]
    assert found == list(numbers)


def test_a_saved_dataset_is_recognised_and_decoded_in_its_files(dataset, tmp_path, clips):
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)

    videos = read(tmp_path / "saved")

    check(videos.records, range(6))
    assert [one.label for one in videos.records] == ["walk", "run", "walk", "run", "walk", None]
    assert {one.split for one in videos.records} == {None}
    assert videos.notes == [f"saved Dataset: 2 files in {tmp_path}/saved, 6 videos"]
    assert videos.records[4].path == f"{tmp_path}/saved/data-00001-of-00002.arrow::video/1"
    np.testing.assert_array_equal(decode(videos.records[4].path, np.arange(12)), decode(str(clips[4]), np.arange(12)))


def test_a_saved_dataset_dict_has_splits(dataset, tmp_path):
    from datasets import DatasetDict

    parts = DatasetDict(train=dataset.select(range(4)), validation=dataset.select([4]))
    parts.save_to_disk(tmp_path / "saved")
    DatasetDict(one=dataset.select([0]), two=dataset.select([1])).save_to_disk(tmp_path / "others")

    videos, others = read(tmp_path / "saved"), read(tmp_path / "others")

    check(videos.records, range(5))
    assert [one.split for one in videos.records] == ["train"] * 4 + ["test"]
    assert videos.notes[1] == (
        "splits are taken from the DatasetDict (number of videos): train (4), validation (1); validation serves as the "
        "test split, because there is no split test"
    )
    assert {one.split for one in others.records} == {None}
    assert "no splits are taken from the DatasetDict, because not all of one, two are known" in others.notes


def test_a_relative_path_is_relative_to_the_working_folder(dataset, tmp_path, monkeypatch):
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "set" / "0.parquet")
    monkeypatch.chdir(tmp_path)

    for path in ("saved", "set", "set/0.parquet"):
        check(read(path).records, range(6))


def test_parquet_files_of_the_hub_are_read_with_their_splits(dataset, tmp_path):
    data = tmp_path / "set" / "data"
    dataset.select(range(4)).to_parquet(data / "train-00000-of-00001.parquet", batch_size=2)
    dataset.select([4, 5]).to_parquet(data / "test-00000-of-00001.parquet")

    videos, one_file = read(tmp_path / "set"), read(data / "train-00000-of-00001.parquet")

    check(videos.records, [4, 5, 0, 1, 2, 3])
    assert [one.split for one in videos.records] == ["test"] * 2 + ["train"] * 4
    assert [one.label for one in videos.records] == ["walk", None, "walk", "run", "walk", "run"]
    assert videos.notes[0] == f"Parquet with videos: 2 files in {tmp_path}/set, 6 videos"
    check(one_file.records, range(4))


def test_a_dataset_that_only_names_files_is_decoded_from_them(tmp_path, clips):
    from datasets import Dataset, Video

    named = Dataset.from_dict({"video": [str(clip) for clip in clips]}).cast_column("video", Video(decode=False))
    named.to_parquet(tmp_path / "set" / "names.parquet")

    videos = read(tmp_path / "set")

    check(videos.records, range(6))
    assert (
        "no labels: expected a column `label`, columns `label_NAME` or a column of the type ClassLabel" in videos.notes
    )


def test_other_columns_of_classes_are_labels_by_their_names(tmp_path, clips):
    from datasets import ClassLabel, Dataset, Features, Image, Video

    cell = [{"bytes": clip.read_bytes(), "path": None} for clip in clips]
    columns = {"thumbnail": cell, "clip": cell, "action": [0, 1] * 3, "scene": [0] * 6}
    kinds = {
        "thumbnail": Image(decode=False),
        "clip": Video(decode=False),
        "action": ClassLabel(names=["walk", "run"]),
        "scene": ClassLabel(names=["park"]),
    }
    Dataset.from_dict(columns, features=Features(kinds)).save_to_disk(tmp_path / "saved")

    records = read(tmp_path / "saved").records

    assert dict(records[1].labels) == {"action": "run", "scene": "park"}
    assert records[1].video_id == "data-00000-of-00001/1" and records[1].path.endswith(".arrow::clip/1")


def test_texts_numbers_groups_and_splits_of_plain_parquet(tmp_path, clips):
    write_parquet(
        tmp_path / "0.parquet",
        clips[:3],
        label=["walk", "run", None],
        split=["train", "test", "test"],
        group=["a", "b", "c"],
    )
    write_parquet(tmp_path / "numbers.parquet", clips[3:5], label=[7, 8])

    records, numbers = read(tmp_path / "0.parquet").records, read(tmp_path / "numbers.parquet").records

    assert [(one.label, one.split, one.group) for one in records] == [
        ("walk", "train", "a"),
        ("run", "test", "b"),
        (None, "test", "c"),
    ]
    assert [one.label for one in numbers] == ["7", "8"]


def test_ids_are_rows_if_names_repeat(tmp_path, clips):
    write_parquet(tmp_path / "set" / "a.parquet", [clips[0], clips[1]])
    write_parquet(tmp_path / "set" / "b.parquet", [clips[0]])

    assert [one.video_id for one in read(tmp_path / "set").records] == ["a/0", "a/1", "b/0"]


def test_a_manifest_and_a_table_without_videos_are_no_set_of_videos(tmp_path, clips):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": ["plain/v0.mp4"], "label": ["x"]}), tmp_path / "list.parquet")
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"vector": [1.0]}), tmp_path / "set" / "vectors.parquet")

    assert [one.label for one in read(tmp_path / "list.parquet").records] == ["x"]
    with pytest.raises(DataError, match=r"contains no videos\. .*\n  ignored: 1 \.parquet"):
        read(tmp_path / "set")
    with pytest.raises(DataError, match=r"vectors\.parquet: has no column of videos, .* Columns: vector"):
        read(tmp_path / "set", layout="huggingface")


def test_what_is_wrong_with_a_set_is_said_with_its_file(dataset, tmp_path, clips):
    dataset.save_to_disk(tmp_path / "missing", num_shards=2)
    (tmp_path / "missing" / "data-00001-of-00002.arrow").unlink()
    dataset.save_to_disk(tmp_path / "cut")
    file = tmp_path / "cut" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:3000])
    dataset.save_to_disk(tmp_path / "state")
    (tmp_path / "state" / "state.json").write_text(json.dumps({"_data_files": 1}))
    write_parquet(tmp_path / "empty.parquet", [])
    cut = write_parquet(tmp_path / "cut.parquet", clips)
    cut.write_bytes(cut.read_bytes()[:-3])
    two = write_parquet(tmp_path / "two.parquet", clips[:1])
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(two).rename_columns(["left"]).append_column("right", pq.read_table(two)["video"]), two)

    for name, said in {
        "missing": r"state\.json: lists data-00001-of-00002\.arrow, which is missing\. Copy the folder again",
        "cut": r"data-00000-of-00001\.arrow: is damaged or not an Arrow file",
        "state": r"state\.json: expected an object with a list `_data_files`",
        "empty.parquet": r"empty\.parquet: contains no videos: its files have no rows",
        "cut.parquet": r"cut\.parquet: cannot be read",
        "two.parquet": r"two\.parquet: has several columns of videos \(left, right\)\. Rename the one to use to `vid",
        "nowhere": r"nowhere: no such file or folder",
    }.items():
        with pytest.raises(DataError, match=said):
            read(tmp_path / name, layout="huggingface")
