"""Several devices move the weights as one does: real videos, real strategies, each in processes of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from hdc_keras.config import TrainConfig
from hdc_keras.errors import ConfigError
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.distribution import Distribution

ROOT = Path(__file__).resolve().parents[2]
# Clipped, so that the norm of the whole gradient must be known to all.
TRAIN = {"batch_size": 4, "jit": "off", "clip_norm": 0.5}
CLUSTER_VARIABLES = ("TF_CONFIG", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


def start(settings, backend="tensorflow", **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.distribution_worker", json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def cluster():
    """What tells each of two processes of this machine about both."""
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (first, second)]
    return [
        {"TF_CONFIG": json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}})}
        for index in range(2)
    ]


def train(folder, out, backend="tensorflow", devices=1, backbone="plain", steps=2, **train):
    settings = {
        "data": str(folder),
        "out": str(out),
        "devices": devices,
        "backbone": backbone,
        "steps": steps,
        "train": {**TRAIN, **train},
    }
    finish(start(settings, backend))
    return dict(np.load(out))


def assert_alike(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name != "devices":
            np.testing.assert_allclose(other[name], value, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def one_device(class_folder_once, tmp_path_factory):
    return train(class_folder_once, tmp_path_factory.mktemp("one") / "one.npz")


@pytest.mark.parametrize("options", [{}, {"jit": "on"}, {"jit": "on", "micro_batches": 2}], ids=str)
def test_two_replicas_of_half_the_batch_are_one_device_of_all(class_folder_once, tmp_path, one_device, options):
    two = train(class_folder_once, tmp_path / "two.npz", devices=2, strategy="mirrored", **options)

    assert two["devices"] == 2
    assert_alike(one_device, two)


def test_synchronised_batch_norm_is_that_of_the_whole_batch(class_folder_once, tmp_path):
    # One step: this network, at this size, makes 1e-3 of a difference of 1e-6 within two.
    shared = {"backbone": "r3d_tiny", "steps": 1}
    one = train(class_folder_once, tmp_path / "one.npz", **shared)
    two = train(
        class_folder_once, tmp_path / "two.npz", devices=2, strategy="mirrored", batch_norm="synchronised", **shared
    )
    local = train(class_folder_once, tmp_path / "local.npz", devices=2, strategy="mirrored", **shared)

    assert_alike(one, two)
    with pytest.raises(AssertionError):
        assert_alike(one, local)


def test_two_processes_are_one_device(class_folder_once, tmp_path, one_device):
    settings = {
        "data": str(class_folder_once),
        "out": str(tmp_path / "two.npz"),
        "devices": 1,
        "backbone": "plain",
        "steps": 2,
        "train": TRAIN,
    }

    finish(*[start(settings, **variables) for variables in cluster()])

    two = dict(np.load(tmp_path / "two.npz"))
    assert two["devices"] == 2
    assert_alike(one_device, two)


def test_processes_stop_together_and_go_on(class_folder_once, tmp_path):
    def pretrain(*arguments):
        return [
            subprocess.Popen(
                [Path(sys.executable).parent / "hdc-keras", "pretrain", *map(str, arguments)],
                cwd=tmp_path,
                env={**os.environ, "KERAS_BACKEND": "tensorflow", **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for variables in cluster()
        ]

    changes = {
        "data.frames": 4,
        "data.decode_size": "[20, 20]",
        "views.size": 16,
        "train.batch_size": 4,
        "train.epochs": 400,
        "train.knn_every": 7,
    }
    settings = [f"--set={key}={value}" for key, value in changes.items()]
    run = RunDirectory(tmp_path / "run")
    processes = pretrain("--config", "videos-cpu", "--data", class_folder_once, *settings, "--run", run.path)
    while not run.checkpoints.files() and all(process.poll() is None for process in processes):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # the other learns of it at their next step
    said = [process.communicate(timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [143, 143], said
    assert "2 devices share a batch (multi_worker)" in said[0]
    step = run.checkpoints.load()[0].steps_taken
    assert 0 < step < 400 and [file.name for file in run.path.glob("*.csv")] == ["metrics.csv"]
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("epochs: 400", f"epochs: {step + 3}"))

    processes = pretrain("--run", run.path, "--resume")
    said = [process.communicate(timeout=120)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], said
    assert [int(row["step"]) for row in run.read_metrics()] == list(range(1, step + 4))


def test_two_devices_of_jax_are_one(class_folder_once, tmp_path):
    one = train(class_folder_once, tmp_path / "one.npz", "jax", jit="auto", strategy="one_device")
    two = train(class_folder_once, tmp_path / "two.npz", "jax", devices=2, jit="auto")

    assert two["devices"] == 2
    assert_alike(one, two)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"strategy": "multi_worker"}, "TF_CONFIG"),
        ({"strategy": "mirrored", "batch_size": 10, "micro_batches": 10}, None),
        ({"batch_size": 12, "micro_batches": 4}, None),
    ],
)
def test_settings_that_do_not_fit_are_refused(monkeypatch, settings, word):
    for name in CLUSTER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's strategies")
    if word:
        with pytest.raises(ConfigError, match=word):
            Distribution(TrainConfig(**settings))
    else:
        assert Distribution(TrainConfig(**settings)).device_count == 1


def test_a_broken_tf_config_is_named(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{not json")
    with pytest.raises(ConfigError, match="TF_CONFIG"):
        Distribution(TrainConfig())
