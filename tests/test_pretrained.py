"""`hdc_keras.load`: an encoder from a run or a checkpoint."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import hdc_keras
from hdc_keras import HDC, R3DTiny
from hdc_keras.config import Experiment
from hdc_keras.errors import ConfigError, RunError, WeightsError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.runs.directory import RunDirectory
from tests.test_backends import needs

EXPERIMENT = Experiment(data={"frames": 8, "decode_size": (40, 48)}, views={"size": 32}, model={"backbone": "r3d_tiny"})
VIDEO = np.random.default_rng(0).integers(0, 256, (2, 8, 50, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models():
    """Two networks, by the step after which their checkpoints were saved."""
    keras.utils.set_random_seed(0)
    return {step: HDC(R3DTiny(), EXPERIMENT.views, EXPERIMENT.contrast) for step in (1, 2)}


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """A run with two checkpoints; the first is the best."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "mine")
    run.create(EXPERIMENT)
    for step, model in models.items():
        checkpoint = run.checkpoints.save(model, step, keep=2)
        run.checkpoints.keep_best(checkpoint, "knn_train", 1 / step)
    return run


def embedding(encoder):
    return ops.convert_to_numpy(encoder(VIDEO)["embedding"])


@pytest.mark.parametrize(
    ("arguments", "step"),
    [({}, 2), ({"checkpoint": "newest"}, 2), ({"checkpoint": "best"}, 1)],
)
def test_a_run_loads_its_newest_or_best_checkpoint(run, models, arguments, step):
    encoder = hdc_keras.load(run.path, **arguments)

    np.testing.assert_array_equal(embedding(encoder), embedding(ClipEncoder(models[step], (40, 48))))
    assert encoder.backbone.name == "r3d_tiny" and not np.allclose(embedding(encoder), 0)


def test_a_checkpoint_in_a_run_uses_the_frame_size_of_the_run(run, models, monkeypatch):
    monkeypatch.chdir(run.checkpoints.folder)

    encoder = hdc_keras.load("step-000000001.keras")

    assert encoder.frame_size == (40, 48)
    np.testing.assert_array_equal(embedding(encoder), embedding(ClipEncoder(models[1], (40, 48))))


def test_a_checkpoint_outside_a_run_needs_a_frame_size(run, models, tmp_path):
    file = shutil.copy(run.checkpoints.files()[0], tmp_path / "checkpoint.keras")

    with pytest.raises(ConfigError, match=r"frame_size=\(128, 171\)"):
        hdc_keras.load(file)
    encoder = hdc_keras.load(file, frame_size=(36, 36))

    np.testing.assert_array_equal(embedding(encoder), embedding(ClipEncoder(models[1], (36, 36))))


def test_a_checkpoint_of_version_0_1_0_keeps_its_weights_inside_and_outside_its_run(tmp_path):
    old_run = Path(__file__).with_name("fixtures") / "run-0.1.0"
    (old_file,) = (old_run / "checkpoints").glob("*.keras")
    file = shutil.copy(old_file, tmp_path / "old.keras")

    in_run, outside = hdc_keras.load(old_run), hdc_keras.load(file, frame_size=(40, 40))

    assert list(outside.heads) and list(outside.heads) == list(in_run.heads)
    for head in outside.heads.values():  # Biases start at zero and are trained.
        assert np.abs(ops.convert_to_numpy(head.projection.bias)).max() > 0
    for theirs, ours in zip(in_run.get_weights(), outside.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_files_are_refused_with_advice(run, models, tmp_path):
    models[1].backbone.save(tmp_path / "backbone.keras")
    keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    (tmp_path / "damaged.keras").write_bytes(run.checkpoints.files()[0].read_bytes()[:1000])

    for name, error, message in (
        ("backbone.keras", ConfigError, r"only a backbone \(r3d_tiny\).*keras.models.load_model"),
        ("other.keras", ConfigError, "holds a Sequential"),
        ("damaged.keras", WeightsError, "cannot be loaded"),
        ("none.keras", RunError, "does not exist"),
        ("", RunError, "holds no run"),
    ):
        with pytest.raises(error, match=message):
            hdc_keras.load(tmp_path / name)
    with pytest.raises(ConfigError, match=r"checkpoint `last`: expected newest or best"):
        hdc_keras.load(run.path, checkpoint="last")
    with pytest.raises(ConfigError, match="is a file"):
        hdc_keras.load(run.checkpoints.files()[0], checkpoint="best")


@pytest.mark.parametrize("what", [3, None, ["runs/mine"], b"runs/mine"])
def test_what_is_not_a_path_is_refused(what):
    with pytest.raises(ConfigError, match=r'expected the path of a run directory or a checkpoint, such as "runs/mine"'):
        hdc_keras.load(what)


ENCODE = """
import sys
import numpy as np
import hdc_keras
from keras import ops
outputs = hdc_keras.load(sys.argv[1])(np.load(sys.argv[2]))
np.savez(sys.argv[3], **{name: ops.convert_to_numpy(value) for name, value in outputs.items()})
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", [pytest.param(name, marks=needs(name)) for name in ("jax", "torch")])
def test_every_backend_gives_the_same_features(run, models, backend, tmp_path):
    np.save(tmp_path / "video.npy", VIDEO)

    subprocess.run(
        [sys.executable, "-c", ENCODE, run.path, tmp_path / "video.npy", tmp_path / "out.npz"],
        env={**os.environ, "KERAS_BACKEND": backend},
        check=True,
        timeout=200,
    )

    found, expected = np.load(tmp_path / "out.npz"), ClipEncoder(models[2], (40, 48))(VIDEO)
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], ops.convert_to_numpy(expected[name]), atol=1e-4, err_msg=name)
