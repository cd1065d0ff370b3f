"""Training on several devices gives the weights of training on one: real videos, real strategies, real processes."""

import json
import os
import re
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
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import ConfigError
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.cluster import slurm_address
from hdc_keras.training.distribution import Distribution

ROOT = Path(__file__).resolve().parents[2]
# The gradient is clipped, so that all devices must agree on its norm.
TRAIN = {"batch_size": 4, "jit": "off", "clip_norm": 0.5}
MIRRORED = {**TRAIN, "strategy": "mirrored"}
CLUSTER_VARIABLES = (
    "TF_CONFIG",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "WORLD_SIZE",
    "RANK",
    "KERAS_DISTRIBUTION_NUM_PROCESSES",
)


def start(videos, out, devices, settings, backend="tensorflow", **environment):
    # XLA compiles faster without optimising.
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = [videos, out, devices, json.dumps(settings)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.distribution_worker", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, **flags, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def cluster(backend="tensorflow"):
    """The environment variables of two processes on this machine that train together."""
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = [str(listener.getsockname()[1]) for listener in (first, second)]
    hosts = [f"127.0.0.1:{port}" for port in ports]
    names = {"KERAS_DISTRIBUTION_JOB_ADDRESSES": hosts[0], "KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}
    of_torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0], "WORLD_SIZE": "2"}
    return [
        {
            "tensorflow": {
                "TF_CONFIG": json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}})
            },
            "jax": {**names, "KERAS_DISTRIBUTION_PROCESS_ID": str(i)},
            "torch": {**of_torchrun, "RANK": str(i), "LOCAL_RANK": str(i)},
        }[backend]
        for i in range(2)
    ]


@pytest.fixture
def videos(once):
    """Eight videos that differ much, so that rounding cannot change which one is most similar to another."""

    def make(folder):
        rng = np.random.default_rng(0)
        for number in range(8):
            background, blocks = rng.integers(0, 255, (1, 1, 1, 3)), rng.integers(0, 255, (24, 4, 4, 3))
            frames = (0.5 * background + 0.5 * blocks).astype("uint8").repeat(8, axis=1).repeat(8, axis=2)
            write_video(folder / f"{number}.mp4", frames)

    return once("distinct-videos", make)


@pytest.fixture
def trained(once, videos):
    """Trains with several settings in one process on two devices, once per session, and returns weights and logs."""

    def results(name, backend="tensorflow", **settings):
        folder = once(f"trained-{name}", lambda folder: finish(start(videos, folder, 2, settings, backend)))
        return [dict(np.load(folder / f"{setting}.npz")) for setting in settings]

    return results


@pytest.fixture
def one_device_and_two(trained):
    one, two = {"train": TRAIN}, {"train": MIRRORED}
    return trained("plain", one=one, two=two)


def assert_alike(one, other):
    assert one.keys() == other.keys() and (one["devices"], other["devices"]) == (1, 2)
    for name, value in one.items():
        if name != "devices":
            np.testing.assert_allclose(other[name], value, atol=1e-5, rtol=1e-5, err_msg=name)


def test_two_replicas_with_half_the_batch_each_equal_one_device(one_device_and_two):
    assert_alike(*one_device_and_two)


@pytest.mark.slow
def test_two_replicas_with_xla_and_micro_batches_equal_one_device(one_device_and_two, trained):
    compiled = {**MIRRORED, "jit": "on"}

    for two in trained("xla", whole={"train": compiled}, micro={"train": {**compiled, "micro_batches": 2}}):
        assert_alike(one_device_and_two[0], two)


@pytest.mark.slow
def test_features_of_positives_return_from_the_other_replica(trained):
    # Only one step: the order of the positives is drawn too, so the draws of the next step are others.
    settings = {"steps": 1}
    one, *others = trained(
        "shuffled",
        one={**settings, "train": TRAIN},
        two={**settings, "shuffles": True, "train": MIRRORED},
        compiled={**settings, "shuffles": True, "train": {**MIRRORED, "jit": "on", "micro_batches": 2}},
        plain={**settings, "shuffles": True, "train": {**MIRRORED, "micro_batches": 2, "accumulate": "plain"}},
        unshuffled={**settings, "train": {**MIRRORED, "micro_batches": 2, "accumulate": "plain"}},
    )
    weights = {name: value for name, value in one.items() if "seed" not in name}
    for other in others[:2]:
        assert_alike(weights, {name: other[name] for name in weights})
    assert_alike(
        {**others[3], "devices": 1}, {**others[2], **{name: others[3][name] for name in one if "seed" in name}}
    )


@pytest.mark.slow
def test_jax_splits_micro_batches_over_its_devices_and_moves_no_windows():
    """The compiled step of 4 devices and 4 micro-batches: each device computes its own videos, one after the other."""
    script = """
import re
import jax, keras, numpy as np
from hdc_keras import HDC, R3D
devices = keras.distribution.list_devices()
keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
model = HDC(R3D([4, 4, 4, 4], [1, 1, 1, 1]), {"size": 16}, {"levels": {"spatial": ["P2"], "temporal": ["P2"]}})
model.compile("sgd", micro_batches=4)
variables = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables, model.metrics_variables
state = tuple([v.value for v in kind] for kind in variables)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
windows = np.zeros((16, 2, 4, 20, 20, 3), "uint8")
windows = jax.device_put(windows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
compiled = jax.jit(model.train_step).lower(state, (windows,)).compile().as_text()
print(re.findall(r"= (f32\\[[\\d,]+\\])\\S* convolution\\(", compiled))
exchanges = r" (all-to-all|collective-permute|all-gather)"
moved = [line.split("(")[0] for line in compiled.splitlines() if re.search(exchanges, line)]
print([line for line in moved if "u8[" in line or "all-to-all" in line or "collective-permute" in line])
print([line for line in moved if re.search(r"\\[\\d+,\\d+,\\d+,\\d+,\\d", line)])
"""
    flags = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    output = subprocess.run(
        [sys.executable, "-c", script.replace("\\\\", "\\")],
        cwd=ROOT,
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    convolutions, exchanged, gathered = output[-3:]
    assert "f32[3,4,8,8,4]" in convolutions  # three views of one video: 16 videos over 4 devices and 4 pieces
    assert "f32[12,4,8,8,4]" not in convolutions
    assert exchanged == "[]" and gathered == "[]"


@pytest.mark.slow
def test_synchronised_batch_norm_uses_statistics_of_the_whole_batch(trained):
    # Only one step: within two, this small network amplifies a difference of 1e-6 to 1e-3.
    network = {"backbone": "r3d_tiny", "steps": 1}
    one, two, local = trained(
        "batch-norm",
        one={**network, "train": TRAIN},
        two={**network, "train": {**MIRRORED, "batch_norm": "synchronised"}},
        local={**network, "train": MIRRORED},
    )

    assert_alike(one, two)
    with pytest.raises(AssertionError):
        assert_alike(one, local)


@pytest.mark.slow
def test_two_processes_equal_one_device(videos, tmp_path, one_device_and_two):
    settings = {"two": {"train": TRAIN}}

    finish(*[start(videos, tmp_path, 1, settings, **variables) for variables in cluster()])

    assert_alike(one_device_and_two[0], dict(np.load(tmp_path / "two.npz")))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_two_processes_of_other_backends_equal_one_device(videos, tmp_path, backend):
    settings = {"train": {**TRAIN, "jit": "auto"}}
    finish(start(videos, tmp_path, 1, {"one": settings}, backend))

    finish(*[start(videos, tmp_path, 1, {"two": settings}, backend, **variables) for variables in cluster(backend)])

    assert_alike(*[dict(np.load(tmp_path / f"{name}.npz")) for name in ("one", "two")])


@pytest.mark.slow
def test_torchrun_starts_a_run_as_the_docs_say(tmp_path):
    launch = "torchrun --nproc-per-node 2 --no-python -- hdc-keras pretrain"
    assert launch.replace("2", "8") in (ROOT / "docs" / "training.md").read_text()

    done = subprocess.run(
        [Path(sys.executable).parent / launch.split()[0], *launch.split()[1:], "--smoke", "--run", "run"],
        cwd=tmp_path,
        env={
            **os.environ,
            "KERAS_BACKEND": "torch",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 devices share a batch (multi_worker)" in done.stdout and "Done: 8 steps" in done.stdout
    assert len(RunDirectory(tmp_path / "run").read_metrics()) == 2


@pytest.mark.parametrize(
    ("backend", "variables", "message"),
    [
        ("torch", {"WORLD_SIZE": "2", "RANK": "0"}, "the processes cannot meet: .*MASTER_ADDR"),
        ("jax", {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}, "the processes cannot meet: coordinator_address"),
    ],
)
def test_processes_without_an_address_are_refused(no_cluster, tmp_path, backend, variables, message):
    script = "from hdc_keras.config import TrainConfig; from hdc_keras.training.distribution import Distribution\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}Distribution(TrainConfig())"],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, **variables},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1 and "ConfigError" in done.stderr
    assert re.search(message, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_processes_stop_together_and_resume_together(class_folder_once, tmp_path, backend):
    def pretrain(*arguments):
        return [
            subprocess.Popen(
                [Path(sys.executable).parent / "hdc-keras", "pretrain", *map(str, arguments)],
                cwd=tmp_path,
                env={**os.environ, "KERAS_BACKEND": backend, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for variables in cluster(backend)
        ]

    changes = {
        "data.frames": 4,
        "data.decode_size": "[20, 20]",
        "views.size": 16,
        "contrast.levels": "{spatial: [P2], temporal: [P3]}",
        "train.batch_size": 4,
        "train.epochs": 400,
        "train.knn_every": 7,
    }
    settings = [f"--set={key}={value}" for key, value in changes.items()]
    run = RunDirectory(tmp_path / "run")
    processes = pretrain("--config", "videos-cpu", "--data", class_folder_once, *settings, "--run", run.path)
    while not run.checkpoints.files() and all(process.poll() is None for process in processes):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # the chief learns of the signal when they vote
    printed = [process.communicate(timeout=120)[0] for process in processes]

    assert [process.returncode for process in processes] == [143, 143], printed
    assert "2 devices share a batch (multi_worker)" in printed[0]
    step = run.checkpoints.load()[0].steps_taken
    assert [int(row["step"]) for row in run.read_metrics()] == list(range(1, step + 1)) and step < 400
    assert sorted(file.name for file in run.path.glob("*.csv")) == ["metrics.csv", "videos.csv"]
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("epochs: 400", f"epochs: {step + 3}"))

    processes = pretrain("--run", run.path, "--resume")
    printed = [process.communicate(timeout=120)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], printed
    assert [int(row["step"]) for row in run.read_metrics()] == list(range(1, step + 4))


@pytest.mark.slow
def test_two_jax_devices_equal_one(trained):
    train = {**TRAIN, "jit": "auto"}

    assert_alike(*trained("jax", "jax", one={"train": {**train, "strategy": "one_device"}}, two={"train": train}))


@pytest.fixture
def no_cluster(monkeypatch):
    for name in CLUSTER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("backend", "variables", "message"),
    [
        (
            "torch",
            {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"},
            "several processes, but processes of PyTorch are started by",
        ),
        ("jax", {"WORLD_SIZE": "2", "RANK": "0"}, "torchrun started several processes, but processes of JAX are"),
        (
            "tensorflow",
            {"WORLD_SIZE": "2", "RANK": "0"},
            "torchrun .* processes of TensorFlow are described by TF_CONFIG",
        ),
        ("torch", {"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE: expected a number of processes. Received: 'two'"),
    ],
)
def test_processes_that_do_not_find_each_other_are_refused(no_cluster, monkeypatch, backend, variables, message):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=message):
        Distribution(TrainConfig())


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu1", "gpu1"), ("node[03-05,9],other", "node03"), ("a,b", "a"), ("n-[1,3]", "n-1"), ("", "localhost")],
)
def test_slurm_tasks_meet_at_the_first_node(monkeypatch, nodes, host):
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    monkeypatch.setenv("SLURM_JOB_ID", "5000")
    monkeypatch.setenv("SLURM_STEP_ID", "1")

    assert slurm_address() == (host, 61440 + 905)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's strategies")
class TestOnTensorFlow:
    def test_a_cluster_must_be_described(self, no_cluster):
        with pytest.raises(ConfigError, match=r"multi_worker finds no other processes: .*TF_CONFIG"):
            Distribution(TrainConfig(strategy="multi_worker"))

    def test_a_broken_tf_config_is_named(self, monkeypatch):
        monkeypatch.setenv("TF_CONFIG", "{not json")
        with pytest.raises(ConfigError, match="TF_CONFIG is not valid JSON"):
            Distribution(TrainConfig())

    @pytest.mark.parametrize(
        "settings", [{"strategy": "mirrored", "batch_size": 10, "micro_batches": 10}, {"batch_size": 12}], ids=str
    )
    def test_a_machine_with_one_device_uses_one(self, no_cluster, settings):
        distribution = Distribution(TrainConfig(**settings))

        assert (distribution.device_count, distribution.replica_count, distribution.notes) == (1, 1, [])
        assert distribution.is_chief and not distribution.is_multi_process

    @pytest.fixture
    def two_replicas(self, no_cluster, monkeypatch):
        """The process has one device, so the strategy is patched to report two replicas."""
        import tensorflow as tf

        monkeypatch.setattr(tf.distribute.MirroredStrategy, "num_replicas_in_sync", 2)

    def test_a_batch_that_cannot_be_split_equally_is_refused(self, two_replicas):
        with pytest.raises(ConfigError, match=r"`train.batch_size` \(6\) .*2 device.* `train.micro_batches` 2.* of 4"):
            Distribution(TrainConfig(strategy="mirrored", batch_size=6, micro_batches=2))

    @pytest.mark.parametrize("options", [{"jit": "on"}, {"micro_batches": 2}], ids=str)
    def test_synchronised_batch_norm_excludes_xla_and_micro_batches(self, two_replicas, options):
        with pytest.raises(ConfigError, match="neither under XLA nor in micro-batches"):
            Distribution(TrainConfig(strategy="mirrored", batch_norm="synchronised", **options))

    @pytest.mark.parametrize(
        ("batch_norm", "synchronises", "note"),
        [
            (
                "auto",
                False,
                "the 32 clips of each view on each device; without a queue, positives are computed on other devices",
            ),
            ("local", False, "the 32 videos of each device"),
            ("synchronised", True, "the whole batch"),
        ],
    )
    def test_a_note_says_where_statistics_come_from(self, two_replicas, batch_norm, synchronises, note):
        distribution = Distribution(TrainConfig(strategy="mirrored", batch_norm=batch_norm))

        assert distribution.synchronises_batch_norm is synchronises
        assert distribution.notes[0].startswith("2 devices share a batch (mirrored).")
        assert distribution.notes[0].endswith(f"statistics from {note}.")
