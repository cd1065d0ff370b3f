"""A run that is killed at any moment and resumed ends with the weights of an undisturbed run, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hdc_keras.runs.directory import RunDirectory
from tests.conftest import write_class_folder
from tests.training.small_runs import assert_identical, weights_of

pytestmark = pytest.mark.slow
# `HDC_KERAS_KILLS=20` for the full count.
KILLS = int(os.environ.get("HDC_KERAS_KILLS", "1"))
EPOCHS = 8 + 6 * KILLS
SETTINGS = {
    "data.frames": 4,
    "data.decode_size": "[20, 20]",
    "views.size": 16,
    "model.backbone": "r3d_tiny",
    "contrast.embedding_dim": 8,
    "contrast.levels": "{spatial: [P2], temporal: [P3]}",
    "train.batch_size": 2,
    "train.learning_rate": 0.02,
    "train.knn_every": 3,
    "train.deterministic": "true",
}


def started(folder, *arguments):
    return subprocess.Popen(
        [Path(sys.executable).parent / "hdc-keras", "pretrain", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def started_on(folder, videos, run, epochs):
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, "train.epochs": epochs}.items()]
    return started(folder, "--config", "videos-cpu", "--data", videos, *settings, "--run", run)


def wait_for_a_checkpoint(process, run):
    before = [file.name for file in run.checkpoints.files()]
    while process.poll() is None and [file.name for file in run.checkpoints.files()] == before:
        time.sleep(0.02)


@pytest.fixture
def undisturbed(once):
    """An uninterrupted run of the command, made once per session and read-only."""

    def make(folder):
        process = started_on(folder, write_class_folder(folder / "videos"), "run", EPOCHS)
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out

    return RunDirectory(once("undisturbed-command", make) / "run")


def test_a_run_killed_at_any_moment_ends_like_an_undisturbed_one(undisturbed, tmp_path):
    run, moments, landed = RunDirectory(tmp_path / "killed"), random.Random(0), 0
    process = started_on(tmp_path, undisturbed.path.parent / "videos", run.path, EPOCHS)
    for _ in range(4 * KILLS):
        wait_for_a_checkpoint(process, run)
        time.sleep(moments.uniform(0, 0.8))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        landed += 1
        process = started(tmp_path, "--run", run.path, "--resume")
        if landed == KILLS:
            break
    out, _ = process.communicate(timeout=600)

    assert process.returncode == 0, out
    assert landed == KILLS, "the run is too short for that many kills"
    assert [row["epoch"] for row in run.read_metrics()] == [str(n + 1) for n in range(EPOCHS)]
    assert_identical(weights_of(undisturbed), weights_of(run))


def test_a_run_whose_newest_checkpoint_is_damaged_resumes_from_the_previous_one(undisturbed, tmp_path):
    run = RunDirectory(shutil.copytree(undisturbed.path, tmp_path / "run"))
    newest = run.checkpoints.files()[-1]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])

    process = started(tmp_path, "--run", run.path, "--resume")
    out, _ = process.communicate(timeout=300)

    assert process.returncode == 0, out
    assert f"{newest.name} cannot be loaded" in " ".join(out.split()) and "skipped" in out
    assert_identical(weights_of(undisturbed), weights_of(run))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_ends_with_its_exit_code(class_folder, tmp_path, number):
    run = RunDirectory(tmp_path / "run")
    process = started_on(tmp_path, class_folder, run.path, 500)
    wait_for_a_checkpoint(process, run)

    process.send_signal(number)
    began = time.monotonic()
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 128 + number, out
    assert time.monotonic() - began < 30 and "--resume" in out
    assert not list(run.checkpoints.folder.glob(".*"))
