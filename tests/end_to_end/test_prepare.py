import json

import pytest

pytestmark = pytest.mark.end_to_end


def test_a_set_is_prepared_verified_looked_at_trained_on_and_judged(class_folder, hdc_keras_command, tmp_path):
    (class_folder / "across" / "notes.mp4").write_text("not a video")

    prepared = hdc_keras_command("prepare", "--data", class_folder, "--out", "prepared", "--short-side", "32")
    assert prepared.code == 0, prepared.out
    assert "8 of 9 videos are prepared, 1 failed, 0 to come: 192 frames" in prepared.out
    assert (
        "notes.mp4: Invalid data found" in prepared.out and "Next: hdc-keras pretrain --data prepared" in prepared.out
    )

    verified = hdc_keras_command("prepare", "--out", "prepared", "--verify")
    assert verified.code == 0 and "All shards are as they were written." in verified.out

    # From here on there are only the shards.
    class_folder.rename(tmp_path / "gone")
    doctor = hdc_keras_command("doctor", "--data", "prepared")
    assert doctor.code == 0 and "8 of 8 videos can be decoded" in doctor.out and "8 jpeg" in doctor.out
    trained = hdc_keras_command("pretrain", "--config", "videos-cpu", "--data", "prepared", "--run", "run", "--smoke")
    assert trained.code == 0, trained.out
    assert "6 for training, 2 held out" in trained.out and "1 of 9 videos could not be prepared" in trained.out
    judged = hdc_keras_command("evaluate", "--run", "run", "--protocol", "knn")
    assert judged.code == 0, judged.out
    result = json.loads(next((tmp_path / "run" / "results").glob("knn*.json")).read_text())
    assert result["counts"] == {"asked": 8, "decoded": 8, "failed": {}}


def test_a_remote_folder_is_prepared_and_only_then_trained_on(class_folder, hdc_keras_command):
    url = f"file://{class_folder}"

    refused = hdc_keras_command("pretrain", "--data", url, "--smoke")
    prepared = hdc_keras_command("prepare", "--data", url, "--out", "prepared", "--short-side", "32")
    doctor = hdc_keras_command("doctor", "--data", "prepared")

    assert refused.code == 1 and f"hdc-keras prepare --data {url} --out FOLDER" in refused.out
    assert prepared.code == 0 and "8 of 8 videos are prepared, 0 failed" in prepared.out
    assert doctor.code == 0 and "across" in doctor.out and "around" in doctor.out


def test_wrong_use_is_explained(class_folder, hdc_keras_command):
    for arguments, code, expected in (
        (("--out", "out"), 2, "--data: expected the videos to prepare"),
        (("--out", "out", "--verify"), 1, "out: holds no prepared set"),
        (("--data", class_folder, "--out", "out", "--part", "5/4"), 2, "expected I/N with I from 1 to N"),
        (("--data", class_folder / "nowhere", "--out", "out"), 1, "no such file or folder"),
        (("--data", "nostore://bucket/videos", "--out", "out"), 1, "nostore://bucket/videos: cannot be listed"),
        (("--data", class_folder, "--out", "s3://bucket/out"), 2, "written to a local or mounted folder"),
    ):
        done = hdc_keras_command("prepare", *arguments)
        assert done.code == code and expected in done.out and "Traceback" not in done.out
