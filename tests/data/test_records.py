from collections import Counter

import pytest

from hdc_keras.data.records import VideoRecord, at_most_per_class, read_records, read_videos, with_splits
from hdc_keras.errors import DataError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_manifest(folder, text, name="manifest.csv"):
    touch(folder, "a.mp4", "b.mp4", "c.mp4")
    (folder / name).write_text(text)
    return folder / name


def test_class_folders_give_labels(tmp_path):
    touch(tmp_path, "run/1.mp4", "run/2.avi", "walk/deep/3.MKV", "walk/notes.txt")

    records = read_records(tmp_path)

    assert [(r.video_id, r.label) for r in records] == [
        ("run/1.mp4", "run"),
        ("run/2.avi", "run"),
        ("walk/deep/3.MKV", "walk"),
    ]


def test_a_plain_folder_is_unlabelled(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4")

    assert [r.label for r in read_records(tmp_path)] == [None, None]


def test_class_folders_that_are_links_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/a/1.mp4", "elsewhere/b/deep/2.mp4", "set/run/3.mp4")
    (tmp_path / "set" / "jump").symlink_to("../elsewhere/a")
    (tmp_path / "set" / "walk").symlink_to(tmp_path / "elsewhere" / "b", target_is_directory=True)
    (tmp_path / "set" / "gone").symlink_to("nowhere")

    records, notes = read_videos(tmp_path / "set")

    assert [(r.video_id, r.label) for r in records] == [
        ("jump/1.mp4", "jump"),
        ("run/3.mp4", "run"),
        ("walk/deep/2.mp4", "walk"),
    ]
    assert records[0].path == str(tmp_path / "set" / "jump" / "1.mp4")
    assert notes == ["class folders: 3 classes, 3 videos", "ignored: 1 without suffix"]


def test_links_that_lead_in_circles_are_left_out_and_named(tmp_path):
    touch(tmp_path, "set/run/1.mp4", "set/walk/2.mp4", "elsewhere/3.mp4")
    for link, target in {
        "set/again": "run",
        "set/all": "..",
        "set/itself": "itself",
        "set/run/up": "../..",
        "set/walk/run": "../run",
        "elsewhere/back": "../set",
        "set/there": "../elsewhere",
    }.items():
        (tmp_path / link).symlink_to(target)

    records, notes = read_videos(tmp_path / "set")

    assert [r.video_id for r in records] == ["run/1.mp4", "there/3.mp4", "walk/2.mp4"]
    assert notes[1:] == [
        "links left out because their folder was read already, or contains the link: 5 (again, all, run/up, ...)",
        "ignored: 1 without suffix",
    ]


def test_folders_named_like_splits_give_splits(tmp_path):
    touch(tmp_path, "train/run/1.mp4", "train/walk/1.mp4", "valid/run/1.mp4", "Test/walk/deep/1.mp4", "logs/notes.txt")

    records, notes = read_videos(tmp_path)

    assert [(r.video_id, r.label, r.split) for r in records] == [
        ("Test/walk/deep/1.mp4", "walk", "test"),
        ("train/run/1.mp4", "run", "train"),
        ("train/walk/1.mp4", "walk", "train"),
        ("valid/run/1.mp4", "run", "val"),
    ]
    assert all(r.path == str(tmp_path / r.video_id) for r in records)
    assert notes == [
        "class folders: 2 classes, 4 videos",
        "splits are taken from folders (number of videos): Test/ (1), train/ (2), valid/ (1)",
        "ignored: 1 .txt",
    ]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_without_a_test_folder_becomes_the_test_split(tmp_path, name):
    touch(tmp_path, "train/run/1.mp4", f"{name}/run/1.mp4")

    records, (_, note) = read_videos(tmp_path)

    assert [(r.label, r.split) for r in records] == [("run", "train"), ("run", "test")]
    assert note.endswith(f"{name}/ (1); {name}/ serves as the test split, because there is no folder test/")


def test_loose_videos_in_split_folders_are_unlabelled(tmp_path):
    touch(tmp_path, "train/1.mp4", "train/2.mp4", "test/run/1.mp4")

    assert [(r.video_id, r.label, r.split) for r in read_records(tmp_path)] == [
        ("test/run/1.mp4", "run", "test"),
        ("train/1.mp4", None, "train"),
        ("train/2.mp4", None, "train"),
    ]


def test_videos_next_to_class_folders_in_a_split_folder_are_refused(tmp_path):
    touch(tmp_path, "train/run/1.mp4", "train/2.mp4", "test/run/1.mp4")

    with pytest.raises(DataError, match=r"some are not \(such as train/2.mp4\)"):
        read_records(tmp_path)


@pytest.mark.parametrize("other", ["run/1.mp4", "trains/1.mp4"])
def test_a_folder_that_names_no_split_makes_all_folders_classes(tmp_path, other):
    touch(tmp_path, "train/fast/1.mp4", "test/slow/1.mp4", other)

    records, notes = read_videos(tmp_path)

    assert {r.label for r in records} == {"train", "test", other.partition("/")[0]}
    assert {r.split for r in records} == {None} and notes == ["class folders: 3 classes, 3 videos"]


def test_a_jsonl_manifest_has_one_object_per_line(tmp_path):
    lines = [
        '{"path": "a.mp4", "label": "x", "group": "g1", "split": "train", "width": 320}',
        "",
        '{"path": "b.mp4", "label": "y", "group": null, "split": "test", "video_id": "second"}',
    ]
    write_manifest(tmp_path, "\n".join(lines), "manifest.jsonl")

    assert read_records(tmp_path) == [
        VideoRecord(str(tmp_path / "a.mp4"), "a.mp4", {"label": "x"}, "train", "g1"),
        VideoRecord(str(tmp_path / "b.mp4"), "second", {"label": "y"}, "test", None),
    ]


def test_every_bad_line_of_a_jsonl_manifest_is_reported(tmp_path):
    lines = ['{"path": "a.mp4"}', "{path: b.mp4}", '["b.mp4"]', '{"path": "gone.mp4"}', '{"path": "a.mp4"}']
    path = write_manifest(tmp_path, "\n".join(lines), "list.jsonl")

    with pytest.raises(DataError) as error:
        read_records(path)

    expected = [
        "4 problem(s)",
        "line 2: not readable as JSON",
        'line 3: expected an object with a `path`. Received: ["b.mp4"]',
        "line 4: no such file",
        "line 5: `a.mp4` is already listed on line 1",
    ]
    assert all(text in str(error.value) for text in expected), str(error.value)


def test_a_manifest_in_the_folder_is_preferred(tmp_path):
    write_manifest(tmp_path, "path,label,group,split,width\na.mp4,x,g1,train,320\nb.mp4,y,g2,test,320\n")

    assert read_records(tmp_path) == [
        VideoRecord(str(tmp_path / "a.mp4"), "a.mp4", {"label": "x"}, "train", "g1"),
        VideoRecord(str(tmp_path / "b.mp4"), "b.mp4", {"label": "y"}, "test", "g2"),
    ]


def test_a_manifest_may_have_several_label_columns(tmp_path):
    path = write_manifest(tmp_path, "path,label_scene,label_motion\na.mp4,dots,left\n")

    assert read_records(path)[0].labels == {"scene": "dots", "motion": "left"}


def test_every_bad_line_is_reported_with_its_number(tmp_path):
    path = write_manifest(
        tmp_path,
        "path,label,split\na.mp4,x,train\nmissing.mp4,x,train\nb.mp4,x,tain\na.mp4,x,test\n,x,train\nc.mp4,x\n",
    )

    with pytest.raises(DataError) as error:
        read_records(path)

    message = str(error.value)
    for expected in ("line 3: no such file", "line 4: `split` must be", "Did you mean `train`?", "line 5: `a.mp4` is"):
        assert expected in message
    assert "line 6: `path` is empty" in message and "line 7: fewer values" in message


def test_a_group_in_two_splits_is_refused(tmp_path):
    path = write_manifest(tmp_path, "path,split,group\na.mp4,train,g\nb.mp4,test,g\n")

    with pytest.raises(DataError, match="group `g` is in several splits"):
        read_records(path)


@pytest.mark.parametrize(
    ("content", "message"), [("name\na.mp4\n", "`path` column"), ("path\n", "lists no video"), ("", "nothing")]
)
def test_an_unusable_manifest_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_records(write_manifest(tmp_path, content))


def test_a_missing_folder_names_the_nearest_one(tmp_path):
    (tmp_path / "videos").mkdir()

    with pytest.raises(DataError, match=r"no such file or folder.*Did you mean .*videos\?"):
        read_records(tmp_path / "vidoes")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="contains no videos"):
        read_records(tmp_path)


def test_videos_next_to_class_folders_are_refused(tmp_path):
    touch(tmp_path, "run/1.mp4", "2.mp4")

    with pytest.raises(DataError, match=r"some are not \(such as 2.mp4\)"):
        read_records(tmp_path)


def labelled(count, group_size=1, classes="ab"):
    return [
        VideoRecord(f"{label}{i}", f"{label}{i}", {"label": label}, None, f"{label}{i // group_size}")
        for label in classes
        for i in range(count)
    ]


@pytest.mark.parametrize("group_size", [1, 2, 5])
def test_held_out_videos_are_balanced_and_groups_are_not_divided(group_size):
    records = with_splits(labelled(20, group_size), holdout=0.25, seed=0)

    counts = Counter((r.split, r.label) for r in records)
    assert counts["test", "a"] == counts["test", "b"] == {1: 5, 2: 4, 5: 5}[group_size]
    assert not {r.group for r in records if r.split == "train"} & {r.group for r in records if r.split == "test"}


def test_the_same_seed_holds_out_the_same_videos():
    assert with_splits(labelled(20), 0.25, 3) == with_splits(labelled(20), 0.25, 3)
    assert with_splits(labelled(20), 0.25, 3) != with_splits(labelled(20), 0.25, 4)


def test_existing_splits_are_kept():
    records = [VideoRecord("a", "a", {"label": "x"}, "test"), VideoRecord("b", "b", {"label": "x"}, "train")]

    assert with_splits(records, 0.5, 0) == records


def test_unlabelled_videos_are_all_used_for_training():
    assert with_splits([VideoRecord("a", "a")], 0.5, 0)[0].split == "train"


def test_a_class_with_one_video_cannot_be_held_out():
    records = [*labelled(4), VideoRecord("c", "c", {"label": "lonely"})]

    with pytest.raises(DataError, match=r"class `lonely` has 1 video\(s\) in 1 group\(s\)"):
        with_splits(records, 0.25, 0)
    assert {r.split for r in with_splits(records, 0.0, 0)} == {"train"}


def test_subsets_are_balanced_and_the_same_for_the_same_seed():
    sizes = {("train", "a"): 20, ("train", "b"): 3, ("test", "a"): 8}
    records = [
        VideoRecord(f"{split}{label}{n}", f"{split}{label}{n}", {"label": label}, split)
        for (split, label), size in sizes.items()
        for n in range(size)
    ]

    kept = at_most_per_class(records, 5, seed=1)

    assert Counter((r.split, r.label) for r in kept) == {("train", "a"): 5, ("train", "b"): 3, ("test", "a"): 5}
    assert kept == at_most_per_class(records, 5, seed=1) != at_most_per_class(records, 5, seed=2)
    assert [r for r in records if r in kept] == kept
    assert all(record in kept for record in at_most_per_class(records, 2, seed=1))


def test_a_class_with_only_large_groups_still_has_one_group_held_out():
    records = [
        VideoRecord(f"{label}{group}{n}", f"{label}{group}{n}", {"label": label}, None, f"{label}{group}")
        for label in "ab"
        for group in (1, 2)
        for n in range(2 + group)
    ]

    split = with_splits(records, 0.25, 0)

    assert {r.group for r in split if r.split == "test"} == {"a1", "b1"}
