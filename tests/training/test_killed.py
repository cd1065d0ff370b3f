"""A run that is killed at any moment ends, resumed, with the weights of one that was not disturbed: bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hdc_keras.runs.directory import RunDirectory
from tests.training.test_run import assert_identical, weights_of

# `HDC_KERAS_KILLS=20` for the full count.
KILLS = int(os.environ.get("HDC_KERAS_KILLS", "1"))
SETTINGS = {
    "data.frames": 4,
    "data.decode_size": "[20, 20]",
    "views.size": 16,
    "model.backbone": "r3d_tiny",
    "contrast.embedding_dim": 8,
    "train.epochs": 8 + 6 * KILLS,
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


def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one(class_folder, tmp_path):
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    fresh = ["--config", "videos-cpu", "--data", class_folder, *settings]
    undisturbed = started(tmp_path, *fresh, "--run", "undisturbed")
    assert undisturbed.wait(timeout=600) == 0, undisturbed.stdout.read()
    run, moments, landed = RunDirectory(tmp_path / "killed"), random.Random(0), 0
    arguments = [*fresh, "--run", run.path]
    for _ in range(4 * KILLS):
        process = started(tmp_path, *arguments)
        before = [file.name for file in run.checkpoints.files()]
        while process.poll() is None and [file.name for file in run.checkpoints.files()] == before:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.8))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        landed += 1
        arguments = ["--run", run.path, "--resume"]
        if landed == KILLS:
            break

    if process.returncode != 0:
        process = started(tmp_path, *arguments)
    out, _ = process.communicate(timeout=600)

    assert process.returncode == 0, out
    assert landed == KILLS, "the run is too short for that many kills"
    assert [row["epoch"] for row in run.read_metrics()] == [str(n + 1) for n in range(SETTINGS["train.epochs"])]
    assert_identical(weights_of(RunDirectory(tmp_path / "undisturbed")), weights_of(run))


def test_a_checkpoint_cut_short_is_passed_over_with_a_word(class_folder, tmp_path):
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, "train.epochs": 3}.items()]
    process = started(tmp_path, "--config", "videos-cpu", "--data", class_folder, *settings, "--run", "run")
    assert process.wait(timeout=300) == 0, process.stdout.read()
    run = RunDirectory(tmp_path / "run")
    weights, newest = weights_of(run), run.checkpoints.files()[-1]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])

    process = started(tmp_path, "--run", "run", "--resume")
    out, _ = process.communicate(timeout=300)

    assert process.returncode == 0, out
    assert f"{newest.name} cannot be loaded" in " ".join(out.split()) and "passed over" in out
    assert_identical(weights, weights_of(run))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_with_its_code(class_folder, tmp_path, number):
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, "train.epochs": 500}.items()]
    process = started(tmp_path, "--config", "videos-cpu", "--data", class_folder, *settings, "--run", "run")
    run = RunDirectory(tmp_path / "run")
    while process.poll() is None and not run.checkpoints.files():
        time.sleep(0.02)

    process.send_signal(number)
    began = time.monotonic()
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 128 + number, out
    assert time.monotonic() - began < 30 and "--resume" in out
    assert not list(run.checkpoints.folder.glob(".*"))
