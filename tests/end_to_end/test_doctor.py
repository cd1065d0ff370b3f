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
    assert "8 h264; 8 shorter than a clip of 16 frames with stride 2 (looped)" in done.out


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
