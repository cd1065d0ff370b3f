"""Tar files in the layout of WebDataset."""

import gzip

import numpy as np
import pytest

from hdc_keras.config import DataConfig
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.decoding import decode
from hdc_keras.errors import DataError
from tests.conftest import frame_numbers
from tests.data.containers import video, write_tar


def read(path, **options):
    return read_dataset(DataConfig(path=str(path), **options))


@pytest.fixture
def clip(tmp_path):
    return video(tmp_path / "plain")


@pytest.fixture
def shards(tmp_path, clip):
    """Two shards for training and one for validation, with the annotations that WebDataset's users write."""
    other = video(tmp_path / "plain", "other.webm.mp4", first=3)
    write_tar(
        tmp_path / "set" / "train-000000.tar",
        {
            "000/a.mp4": clip,
            "000/a.cls": "3",
            "000/a.json": {"fps": 25, "tags": ["x"]},
            "000/b.avi": clip,
            "000/b.cls": "4",
        },
    )
    write_tar(
        tmp_path / "set" / "train-000001.tar",
        {"c.json": {"label": "run", "group": "g"}, "c.0.MP4": other, "c.cls": "7"},
    )
    write_tar(
        tmp_path / "set" / "val-000000.tar", {"./d.mp4": clip, "./d.txt": "walk", "./e.txt": "walk", "./e.mp4": clip}
    )
    return tmp_path / "set"


def test_shards_are_recognised_and_read_by_their_keys(shards):
    videos = read(shards)

    assert [(one.video_id, one.label, one.split, one.group) for one in videos.records] == [
        ("000/a", "3", "train", None),
        ("000/b", "4", "train", None),
        ("c", "run", "train", "g"),
        ("d", "walk", "test", None),
        ("e", "walk", "test", None),
    ]
    assert videos.records[2].path == f"{shards}/train-000001.tar::c.0.MP4"
    assert frame_numbers(decode(videos.records[2].path, np.array([0, 4]))).tolist() == [3, 7]
    assert videos.notes == [
        f"WebDataset: 3 tars in {shards}, 5 videos",
        "splits are taken from the names of files (number of videos): train (3), val (2); val serves as the test "
        "split, because no file is named test",
    ]


def test_one_tar_is_a_set_and_splits_may_be_folders(shards, clip):
    write_tar(shards / "in" / "train" / "0.tar", {"a.mp4": clip})
    write_tar(shards / "in" / "test" / "0.tar", {"b.mp4": clip})

    assert [one.video_id for one in read(shards / "train-000000.tar").records] == ["000/a", "000/b"]
    assert {one.video_id: one.split for one in read(shards / "in").records} == {"a": "train", "b": "test"}


def test_a_list_of_tars_is_a_set(shards, tmp_path):
    (tmp_path / "list.txt").write_text(f"set/train-000001.tar\n\n{shards}/val-000000.tar\n")
    (tmp_path / "wrong.txt").write_text("set/train-000001.tar\nset/gone.tar\nlist.txt\n")
    (tmp_path / "twice.txt").write_text("set/train-000001.tar\nset/train-000001.tar\n")

    videos = read(tmp_path / "list.txt")

    assert [(one.video_id, one.split) for one in videos.records] == [("c", "train"), ("d", "test"), ("e", "test")]
    assert [decode(one.path, np.array([0])).shape for one in videos.records] == [(1, 48, 64, 3)] * 3
    with pytest.raises(DataError, match=r"gone\.tar: No such file or directory\n  list\.txt: is not a tar"):
        read(tmp_path / "wrong.txt")
    with pytest.raises(DataError, match=r"twice\.txt: lists set/train-000001\.tar more than once"):
        read(tmp_path / "twice.txt")


def test_a_relative_path_is_relative_to_the_working_folder(shards, monkeypatch):
    monkeypatch.chdir(shards.parent)

    for path in ("set", "set/train-000001.tar"):
        record = next(one for one in read(path).records if one.video_id == "c")
        assert record.path == "set/train-000001.tar::c.0.MP4" and decode(record.path, np.array([0])).shape[0] == 1


def test_ids_do_not_depend_on_the_place_of_a_set_and_name_the_tar_only_if_needed(shards, clip, tmp_path):
    before = [one.video_id for one in read(shards).records]
    shards = shards.rename(tmp_path / "moved")
    again = [one.video_id for one in read(shards).records]
    write_tar(shards / "train-000002.tar", {"c.mp4": clip, "c.cls": "1"})
    videos = read(shards)

    assert again == before
    assert [one.video_id for one in videos.records][2:4] == ["train-000001/c", "train-000002/c"]
    assert "ids are TAR/KEY, because some keys are in several tars" in videos.notes


def test_json_may_give_several_labels_and_the_split(tmp_path, clip):
    samples = {"a": ("red", "up", "train"), "b": ("red", "down", "test")}
    files = {f"{key}.mp4": clip for key in samples} | {
        f"{key}.json": {"label_colour": colour, "label_motion": motion, "split": split, "start": "00:01", "path": "x"}
        for key, (colour, motion, split) in samples.items()
    }

    videos = read(write_tar(tmp_path / "train.tar", files))

    assert [dict(one.labels) for one in videos.records] == [
        {"colour": "red", "motion": "up"},
        {"colour": "red", "motion": "down"},
    ]
    assert [one.split for one in videos.records] == ["train", "test"]


def test_captions_are_not_labels(tmp_path, clip):
    files = {f"{key}.mp4": clip for key in "abc"} | {f"{key}.txt": f"a person, {key}" for key in "abc"}

    videos = read(write_tar(tmp_path / "set.tar", files))

    assert [one.label for one in videos.records] == [None] * 3
    assert "the texts of .txt files are not used as labels, because 3 of 3 differ" in videos.notes


def test_a_key_without_a_video_is_left_out_and_counted(tmp_path, clip):
    videos = read(
        write_tar(tmp_path / "set.tar", {"a.mp4": clip, "b.json": {"label": "x"}, "._c.mp4": b"", "d.jpg": b"x"})
    )

    assert [one.video_id for one in videos.records] == ["a"]
    assert "keys left out because they have no video: 1 (b)" in videos.notes


def test_names_that_do_not_say_the_split_of_every_tar_are_not_used(shards, clip):
    write_tar(shards / "more.tar", {"x.mp4": clip, "x.cls": "1"})

    videos = read(shards)

    assert {one.split for one in videos.records} == {None}
    assert "no splits are taken from the names of files, because more.tar does not name exactly one" in videos.notes


def test_every_problem_of_the_tars_is_reported_at_once(shards, clip):
    write_tar(
        shards / "train-2.tar",
        {"k.mp4": clip, "k.webm": clip, "l.mp4": clip, "l.json": "[1]", "m.mp4": clip, "m.cls": b"\xff"},
    )
    write_tar(
        shards / "train-3.tar",
        {
            "n.mp4": clip,
            "n.json": {"label": ["x"]},
            "o.mp4": clip,
            "o.json": "{",
            "p.mp4": clip,
            "p.json": {"split": "training"},
        },
    )
    cut = write_tar(shards / "train-4.tar", {"q.mp4": clip, "r.mp4": clip})
    cut.write_bytes(cut.read_bytes()[: 2048 + clip.stat().st_size])
    (shards / "train-5.tar").write_bytes(gzip.compress((shards / "train-000000.tar").read_bytes()))
    (shards / "train-6.tar").write_text("not a tar " * 100)

    with pytest.raises(DataError) as raised:
        read(shards)

    for expected in (
        f"{shards}: 9 problem(s):",
        "train-4.tar: is truncated or damaged after",
        "train-5.tar: is compressed (gzip), so single videos cannot be read. Decompress it to a plain .tar",
        "train-6.tar: is not a tar",
        "train-2.tar, k: expected one video for a key. Received: k.mp4, k.webm",
        "train-2.tar, l: .json: expected an object. Received: [1]",
        "train-2.tar, m: `label` is not UTF-8 (byte 0xFF)",
        "train-3.tar, n: .json: `label` must be a text or a number. Received: a list",
        "train-3.tar, o: .json: not readable as JSON",
        "train-3.tar, p: `split` must be one of train, val, test. Received: training",
    ):
        assert expected in str(raised.value)


def test_a_video_that_is_twice_in_a_tar_is_a_problem(tmp_path, clip):
    tar = write_tar(tmp_path / "set.tar", {"a.mp4": clip})
    write_tar(tar, {"a.mp4": clip}, mode="a")

    with pytest.raises(DataError, match=r"set\.tar, a: expected one video for a key\. Received: a\.mp4, a\.mp4"):
        read(tar)


def test_a_tar_without_its_end_is_read_with_a_warning(tmp_path, clip):
    tar = write_tar(tmp_path / "set.tar", {"a.mp4": clip})
    content = tar.read_bytes()
    tar.write_bytes(content[: 512 + -(-clip.stat().st_size // 512) * 512])

    videos = read(tar)

    assert len(videos.records) == 1
    assert "set.tar does not end with the usual mark, so its last videos may be missing" in videos.notes


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"set.tar.gz": b"\x1f\x8b"}, r"set\.tar\.gz is compressed, so single videos cannot be read\. Decompress it"),
        ({"set.tgz": b"\x1f\x8b"}, r"set\.tgz is compressed"),
        ({"set.tar": {"a.json": "{}", "b.jpg": b""}}, r"contains no videos in 1 tar\.\n  keys left out .*: 1 \(a\)"),
        ({"notes.md": b""}, r"contains no tar files\. Expected files ending in \.tar"),
    ],
)
def test_a_folder_without_readable_videos_says_what_is_expected(tmp_path, files, said):
    folder = tmp_path / "set"
    folder.mkdir()
    for name, content in files.items():
        write_tar(folder / name, content) if isinstance(content, dict) else (folder / name).write_bytes(content)

    with pytest.raises(DataError, match=said):
        read(folder, layout="webdataset")
    if "notes.md" not in files:
        with pytest.raises(DataError, match=said):
            read(folder)


def test_tars_beside_videos_change_nothing(shards, clip):
    (shards / "clip.mp4").write_bytes(clip.read_bytes())

    videos = read(shards)

    assert [one.video_id for one in videos.records] == ["clip.mp4"] and "ignored: 3 .tar" in videos.notes
    assert len(read(shards, layout="webdataset").records) == 5


def test_a_manifest_beside_tars_comes_first(shards):
    (shards / "manifest.csv").write_text("path,label\ntrain-000000.tar::000/a.mp4,mine\n")

    assert [(one.video_id, one.label) for one in read(shards).records] == [("train-000000.tar::000/a.mp4", "mine")]
