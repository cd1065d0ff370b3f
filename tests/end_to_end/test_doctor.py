import csv

import pytest

pytestmark = pytest.mark.end_to_end


def test_it_describes_the_machine_and_the_set(class_folder, hdc_keras_in_process):
    done = hdc_keras_in_process("doctor", "--data", class_folder)

    assert done.code == 0, done.out
    for expected in ("backend", "tensorflow", "PyAV", "GB of memory", "8 of 8 videos can be decoded"):
        assert expected in done.out
    flat = " ".join(done.out.split())
    assert "│ across │ 3 │ 0 │ 1 │ │ around │ 3 │ 0 │ 1 │" in flat and "│ total │ 6 │ 0 │ 2 │" in flat
    assert "│ frames │ 24 │ 24 │ 24 │" in flat and "│ width │ 32 │ 32 │ 32 │" in flat
    assert "class folders: 2 classes, 8 videos" in done.out


@pytest.mark.parametrize(
    ("accelerator", "clip"),
    [
        (False, "0 shorter than a clip of 8 frames with stride 3 (looped), as in the config videos-cpu"),
        (True, "8 shorter than a clip of 16 frames with stride 2 (looped), as in the config videos"),
    ],
)
def test_the_clip_is_that_of_the_config_that_pretrain_would_choose(
    class_folder, hdc_keras_in_process, monkeypatch, accelerator, clip
):
    monkeypatch.setattr("hdc_keras.devices.has_accelerator", lambda: accelerator)

    done = hdc_keras_in_process("doctor", "--data", class_folder)

    assert done.code == 0 and clip in " ".join(done.out.split())


def test_all_failures_are_written_to_a_file_on_request(class_folder, hdc_keras_in_process, tmp_path):
    for number in range(7):
        (class_folder / "across" / f"bad {number}.mp4").write_text("not a video")

    shown = hdc_keras_in_process("doctor", "--data", class_folder)
    written = hdc_keras_in_process("doctor", "--data", class_folder, "--failures", "lists/failures.csv")
    again = hdc_keras_in_process("doctor", "--data", class_folder, "--failures", "lists/failures.csv")

    assert shown.code == written.code == 1 and shown.out.count(": Invalid data") == 5
    assert "and 2 more" in shown.out and "To list all of them, with their ids: --failures FILE.csv" in shown.out
    assert "lists/failures.csv lists 7 video(s) that cannot be decoded" in written.out
    with (tmp_path / "lists" / "failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video_id"] for row in rows] == [f"across/bad {number}.mp4" for number in range(7)]
    assert rows[0]["file"] == str(class_folder / "across" / "bad 0.mp4") and "Invalid data" in rows[0]["cause"]
    assert again.code == 2 and "already exists" in again.out


def test_options_that_check_nothing_are_refused(refused, class_folder, tmp_path):
    (tmp_path / "file").touch()

    refused("doctor", "--data", "", code=2, says=["--data: expected a folder", "Received an empty text"])
    refused("doctor", "--failures", "list.csv", code=2, says=["Add --data"])
    refused("doctor", "--data", class_folder, "--failures", "file/list.csv", code=2, says=["cannot be written"])


@pytest.mark.parametrize(
    "command",
    [
        ("pretrain",),
        ("prepare", "--out", "out"),
        ("evaluate", "--run", "{run}", "--protocol", "knn"),
        ("embed", "--run", "{run}", "--out", "table.parquet"),
    ],
)
def test_every_command_refuses_an_empty_path(refused, smoke_run, command):
    arguments = [argument.format(run=smoke_run[0]) for argument in command]

    refused(*arguments, "--data", "", code=2, says=["--data: expected a folder", "Received an empty text"])


def test_a_stray_csv_is_named(class_folder, hdc_keras_in_process):
    (class_folder / "download_log.csv").write_text("path,status\nacross/0.mp4,ok\n")

    done = hdc_keras_in_process("doctor", "--data", class_folder)

    assert done.code == 0 and "8 of 8 videos can be decoded" in done.out
    assert "download_log.csv is not used as manifest, because it lists only 1 of the 8 videos" in done.out


def test_a_file_that_is_not_a_video_is_named_and_fails_the_command(class_folder, hdc_keras_in_process):
    (class_folder / "across" / "notes.mp4").write_text("not a video")

    done = hdc_keras_in_process("doctor", "--data", class_folder)

    assert done.code == 1 and "8 of 9 videos can be decoded" in done.out
    assert f"{class_folder / 'across' / 'notes.mp4'}: " in done.out and "Traceback" not in done.out


def test_split_folders_are_recognised_and_named(tmp_path, class_folder, hdc_keras_in_process):
    for path in sorted(class_folder.rglob("*.mp4")):
        split = "val" if path.stem == "3" else "train"
        target = tmp_path / "set" / split / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)

    done = hdc_keras_in_process("doctor", "--data", tmp_path / "set")

    flat = " ".join(done.out.split())
    assert done.code == 0 and "│ across │ 3 │ 0 │ 1 │ │ around │ 3 │ 0 │ 1 │" in flat
    assert "splits are taken from folders (number of videos): train/ (6), val/ (2); val/ serves as the test" in flat


def test_an_official_layout_is_recognised(tmp_path, class_folder, hdc_keras_in_process):
    for number, path in enumerate(sorted(class_folder.rglob("*.mp4"))):
        action = path.parent.name.capitalize()
        target = tmp_path / "UCF-101" / action / f"v_{action}_g{number // 2:02d}_c{number % 2:02d}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)

    done = hdc_keras_in_process("doctor", "--data", tmp_path / "UCF-101")

    assert done.code == 0 and "8 videos in 4 groups" in done.out and "no official lists were found" in done.out


@pytest.mark.parametrize(
    "command",
    [
        ("pretrain", "--smoke", "--dry-run"),
        ("prepare", "--out", "out", "--short-side", "32"),
        ("evaluate", "--run", "{run}", "--protocol", "knn", "--out", "out", "--set", "evaluate.clips=1"),
        ("embed", "--run", "{run}", "--out", "table.parquet", "--set", "evaluate.clips=1"),
    ],
)
def test_other_commands_say_how_the_set_was_read_too(class_folder, hdc_keras_in_process, smoke_copy, command):
    (class_folder / "across" / "notes.txt").touch()
    arguments = [argument.format(run=smoke_copy) for argument in command]

    done = hdc_keras_in_process(*arguments, "--data", class_folder)

    assert done.code == 0, done.out
    assert "class folders: 2 classes, 8 videos" in done.out and "ignored: 1 .txt" in done.out
