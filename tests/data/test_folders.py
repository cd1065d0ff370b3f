"""What counts as a video of a folder, and what is said about the rest."""

import os

import pytest

from hdc_keras.data.records import read_records, read_videos
from hdc_keras.errors import DataError
from tests.data.test_records import touch, write_manifest


def test_hidden_and_system_entries_are_skipped_and_other_files_counted(tmp_path):
    touch(tmp_path, "run/1.mp4", "run/._1.mp4", ".cache/2.mp4", "__MACOSX/run/1.mp4", "run/.ipynb_checkpoints/1.mp4")
    touch(tmp_path, "@eaDir/1.mp4", "$RECYCLE.BIN/1.mp4", "lost+found/1.mp4", "run/a.gif", "walk/b.GIF", "walk/LICENSE")
    touch(tmp_path, "walk/2.mp4", "walk/notes.txt", "walk/a sentence. With a dot and more words")

    records, notes = read_videos(tmp_path)

    assert [r.video_id for r in records] == ["run/1.mp4", "walk/2.mp4"]
    assert notes == [
        "class folders: 2 classes, 2 videos",
        "ignored: 7 hidden or system, 2 .gif, 2 without suffix, 1 .txt",
    ]


def test_many_suffixes_are_summed_up(tmp_path):
    touch(tmp_path, "1.mp4", *(f"{name}.{name}" for name in "abcdefgh"))

    assert read_videos(tmp_path).notes[1].endswith("1 .e, 3 others")


def test_an_error_on_a_folder_without_videos_says_what_was_ignored(tmp_path):
    touch(tmp_path, "a.gif", "b.gif")

    with pytest.raises(DataError, match=r"contains no videos(.|\n)*ignored: 2 .gif"):
        read_records(tmp_path)


def test_a_folder_named_like_a_video_is_a_class_folder(tmp_path):
    touch(tmp_path, "x.mp4/1.mp4")
    (tmp_path / "empty.mp4").mkdir()

    assert [(r.video_id, r.label) for r in read_records(tmp_path)] == [("x.mp4/1.mp4", "x.mp4")]


def test_a_pipe_named_like_a_video_is_not_read(tmp_path):
    touch(tmp_path, "1.mp4")
    os.mkfifo(tmp_path / "2.mp4")

    assert [r.video_id for r in read_records(tmp_path)] == ["1.mp4"]


def test_a_link_to_a_file_of_the_set_is_left_out_with_a_note(tmp_path):
    touch(tmp_path, "set/run/1.mp4", "set/walk/2.mp4", "elsewhere/3.mp4")
    for link, target in {
        "set/again/1.mp4": "../run/1.mp4",
        "set/run/3.mp4": "../../elsewhere/3.mp4",
        "set/walk/3.mp4": "../../elsewhere/3.mp4",
        "set/walk/broken.mp4": "nowhere.mp4",
    }.items():
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(target)

    records, notes = read_videos(tmp_path / "set")

    assert [r.video_id for r in records] == ["run/1.mp4", "run/3.mp4", "walk/2.mp4", "walk/broken.mp4"]
    assert notes[1:] == ["links left out because their file was read already: 2 (again/1.mp4, walk/3.mp4)"]


def test_unicode_names_are_read(tmp_path):
    touch(tmp_path, "läuft/Öl 走る.mp4", "चलना/1.mp4")

    assert {r.label for r in read_records(tmp_path)} == {"läuft", "चलना"}


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"two\nlines.mp4"])
def test_a_name_that_is_not_utf_8_or_has_control_characters_is_refused(tmp_path, name):
    (tmp_path / os.fsdecode(name)).touch()

    with pytest.raises(DataError, match=r"expected file names in UTF-8, without control characters. Rename"):
        read_records(tmp_path)


def class_folders_of_ten(folder):
    touch(folder, *(f"run/{n}.mp4" for n in range(5)), *(f"walk/{n}.mp4" for n in range(5)))


def test_a_csv_that_lists_the_videos_is_the_manifest(tmp_path):
    class_folders_of_ten(tmp_path)
    rows = [f"run/{n}.mp4,r" for n in range(5)] + [f"walk/{n}.mp4,w" for n in range(4)]
    (tmp_path / "clips.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "labels.csv").write_text("name,label\nrun,1\n")

    records, notes = read_videos(tmp_path)

    assert {r.label for r in records} == {"r", "w"}
    assert notes == [f"manifest: {tmp_path / 'clips.csv'}, 9 videos"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["run/0.mp4", "https://elsewhere.org/1.mp4"], "it lists only 1 of the 10 videos in the folder"),
        ([f"{label}/{n}.mp4" for label in ("run", "walk") for n in range(6)], "2 of its 12 paths do not exist"),
        ([], "it lists no videos"),
    ],
)
def test_a_stray_csv_is_named_and_class_folders_are_used(tmp_path, rows, reason):
    class_folders_of_ten(tmp_path)
    (tmp_path / "download_log.csv").write_text("\n".join(["path", *rows]))

    records, notes = read_videos(tmp_path)

    assert {r.label for r in records} == {"run", "walk"} and len(records) == 10
    assert notes == [
        "class folders: 2 classes, 10 videos",
        f"download_log.csv is not used as manifest, because {reason}; to use it: --data {tmp_path}/download_log.csv",
    ]


def test_a_csv_is_the_manifest_when_it_is_named(tmp_path):
    class_folders_of_ten(tmp_path)
    (tmp_path / "some.csv").write_text("path\nrun/1.mp4\n")

    records, notes = read_videos(tmp_path / "some.csv")

    assert len(records) == 1 and notes == [f"manifest: {tmp_path / 'some.csv'}, 1 video"]


def test_a_manifest_in_a_folder_may_list_videos_elsewhere(tmp_path):
    path = write_manifest(tmp_path, "path\na.mp4\n", "clips.csv")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "clips.csv").write_text(f"path\n{path.with_name('a.mp4')}\nhttps://elsewhere.org/b.mp4\n")

    assert len(read_records(tmp_path / "list")) == 2


def test_an_error_on_a_folder_names_the_csv_that_was_not_used(tmp_path):
    (tmp_path / "videos.csv").write_text("path,label\ngone.mp4,x\n")

    with pytest.raises(DataError, match=r"videos.csv is not used as manifest, because 1 of its 1 paths do not exist"):
        read_records(tmp_path)


def test_two_csv_files_that_list_the_videos_are_refused(tmp_path):
    for name in ("one.csv", "two.csv"):
        write_manifest(tmp_path, "path\na.mp4\nb.mp4\nc.mp4\n", name)

    with pytest.raises(DataError, match=r"several manifests \(one.csv, two.csv\)"):
        read_records(tmp_path)
