import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.containers import write_tar

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def prepared(class_folder, hdc_keras_in_process, tmp_path):
    """The set prepared from eight videos and a file that is not a video, and the printed text. The source is gone."""
    (class_folder / "across" / "notes.mp4").write_text("not a video")
    done = hdc_keras_in_process("prepare", "--data", class_folder, "--out", "prepared", "--short-side", "32")
    assert done.code == 0, done.out
    class_folder.rename(tmp_path / "gone")
    return tmp_path / "prepared", done.out


def test_a_set_is_prepared_verified_and_described(prepared, hdc_keras_in_process):
    folder, printed = prepared
    verified = hdc_keras_in_process("prepare", "--out", "prepared", "--verify")
    doctor = hdc_keras_in_process("doctor", "--data", "prepared")
    shard = next(folder.glob("*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = hdc_keras_in_process("prepare", "--out", "prepared", "--verify")

    assert "Prepared 8 of 9 videos, 1 failed, 0 remaining: 192 frames" in printed
    assert "notes.mp4: Invalid data found" in printed and "Next: hdc-keras pretrain --data prepared" in printed
    assert verified.code == 0 and "All shards are intact." in verified.out
    assert doctor.code == 0 and "8 of 8 videos can be decoded" in doctor.out and "8 jpeg" in doctor.out
    assert damaged.code == 1 and shard.name in damaged.out and "1 problem(s)" in damaged.out


@pytest.mark.slow
def test_a_prepared_set_is_trained_on_and_evaluated(prepared, hdc_keras_command, hdc_keras_in_process, tmp_path):
    trained = hdc_keras_command("pretrain", "--config", "videos-cpu", "--data", "prepared", "--run", "run", "--smoke")
    evaluated = hdc_keras_in_process("evaluate", "--run", "run", "--protocol", "knn")

    assert trained.code == 0, trained.out
    assert "6 for training, 2 held out" in trained.out and "1 of 9 videos could not be prepared" in trained.out
    assert evaluated.code == 0, evaluated.out
    result = json.loads(next((tmp_path / "run" / "results").glob("knn*.json")).read_text())
    assert result["counts"] == {"asked": 8, "decoded": 8, "failed": {}}


def test_a_full_disk_ends_the_command_with_one_line(class_folder, tmp_path):
    command = f"ulimit -f 4; {Path(sys.executable).parent}/hdc-keras prepare --data {class_folder} --out out"  # 4 kB

    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=200)

    assert done.returncode == 1, done.stderr
    assert "shard-00000-of-00001.tfrecord cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["prepared.json"]


@pytest.fixture
def shards(class_folder, tmp_path):
    """The eight videos in two tar files, with their labels."""
    for number in range(2):
        clips = sorted(class_folder.glob(f"*/[{2 * number}{2 * number + 1}].mp4"))
        files = {f"{clip.parent.name}{clip.name}": clip for clip in clips}
        files |= {f"{clip.parent.name}{clip.stem}.cls": clip.parent.name for clip in clips}
        write_tar(tmp_path / "shards" / f"{number:06d}.tar", files)
    shutil.rmtree(class_folder)
    return tmp_path / "shards"


def test_a_set_is_prepared_from_tar_files(shards, hdc_keras_in_process):
    prepared = hdc_keras_in_process("prepare", "--data", shards, "--out", "prepared", "--short-side", "32")
    doctor = hdc_keras_in_process("doctor", "--data", shards)

    assert prepared.code == 0, prepared.out
    assert f"WebDataset: 2 tars in {shards}, 8 videos" in prepared.out
    assert "Prepared 8 of 8 videos, 0 failed, 0 remaining: 192 frames" in prepared.out
    assert doctor.code == 0 and "8 of 8 videos can be decoded" in doctor.out and "across" in doctor.out


@pytest.mark.slow
def test_tar_files_are_trained_on_evaluated_embedded_and_searched(
    shards, hdc_keras_command, hdc_keras_in_process, tmp_path
):
    trained = hdc_keras_command("pretrain", "--config", "videos-cpu", "--data", "shards", "--run", "run", "--smoke")
    evaluated = hdc_keras_in_process("evaluate", "--run", "run", "--protocol", "knn")
    embedded = hdc_keras_in_process("embed", "--run", "run", "--data", "shards", "--out", "vectors.parquet")
    like = f"{shards}/000001.tar::around3.mp4"
    searched = hdc_keras_in_process(
        "search", "vectors.parquet", "--like", like, "--by", "temporal", "--html", "page.html"
    )

    assert trained.code == 0, trained.out
    assert "6 for training, 2 held out" in trained.out
    assert evaluated.code == 0, evaluated.out
    result = json.loads(next((tmp_path / "run" / "results").glob("knn*.json")).read_text())
    assert result["counts"] == {"asked": 8, "decoded": 8, "failed": {}}
    assert embedded.code == 0, embedded.out
    assert searched.code == 0, searched.out
    assert "around3" in searched.out
    assert (tmp_path / "page.html").read_text().count("data:image/") == 9  # the eight videos and the one from the tar


def test_a_remote_folder_has_to_be_prepared_before_training(class_folder, hdc_keras_in_process):
    url = f"file://{class_folder}"

    refused = hdc_keras_in_process("pretrain", "--data", url, "--smoke")
    prepared = hdc_keras_in_process("prepare", "--data", url, "--out", "prepared", "--short-side", "32")
    doctor = hdc_keras_in_process("doctor", "--data", "prepared")

    assert refused.code == 1 and f"hdc-keras prepare --data {url} --out FOLDER" in refused.out
    assert prepared.code == 0 and "Prepared 8 of 8 videos, 0 failed" in prepared.out
    assert doctor.code == 0 and "across" in doctor.out and "around" in doctor.out


def test_wrong_usage_is_explained(refused, class_folder):
    for arguments, code, expected in (
        (("--out", "out"), 2, "--data: expected the videos to prepare"),
        (("--out", "out", "--verify"), 1, "out: not a prepared set"),
        (("--data", class_folder, "--out", "out", "--part", "5/4"), 2, "expected I/N with I from 1 to N"),
        (("--data", class_folder / "nowhere", "--out", "out"), 1, "no such file or folder"),
        (("--data", "nostore://bucket/videos", "--out", "out"), 1, "nostore://bucket/videos: expected a local path"),
        (("--data", class_folder, "--out", class_folder), 2, "expected another folder than --data"),
        (
            ("--data", class_folder, "--out", "ssh://host/out"),
            2,
            "expected a local or mounted folder, or a URL with one",
        ),
        (("--data", class_folder, "--out", ""), 2, "expected a folder or its URL"),
    ):
        refused("prepare", *arguments, code=code, says=[expected])
