"""TensorFlow, JAX and PyTorch compute the same numbers and share files; the commands also run without TensorFlow."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest

from hdc_keras import HDC, R3D, preset

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("backend_worker.py")
NEEDS = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}


def needs(*backends):
    """Marks for a test of backends that may not be installed; CI has them all."""
    missing = [name for name in backends if not find_spec(NEEDS[name])]
    return pytest.mark.skipif(bool(missing), reason=f"pip install -e '.[{','.join(missing)}]'")


def run(backend, code, *arguments, cwd=None):
    done = subprocess.run(
        [sys.executable, *code, *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend, "COLUMNS": "200"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture
def start(once):
    """A folder with a model's file and windows for five steps."""
    return once("backends", write_start)


def write_start(folder):
    keras.utils.set_random_seed(0)
    model = HDC(
        R3D([8, 8, 12, 16], [1, 1, 1, 1], name="small"),
        {"size": 16, "fade_static": 0.8, "own_colour": 0.0, "temporal_negatives": ["shifted", "reversed"]},
        preset("hdc-every-level")["contrast"]
        | {"embedding_dim": 16, "hidden_dim": 32, "temporal_weight": 1.5, "temporal_negative_weight": 2.0},
    )
    model.save(folder / "start.keras")
    rng = np.random.default_rng(0)
    # The colours of the videos differ much, so that no batch norm divides by almost zero and amplifies rounding errors.
    windows = 0.5 * rng.integers(0, 255, (40, 1, 1, 1, 1, 3)) + 0.5 * rng.integers(0, 255, (40, 2, 4, 2, 2, 3))
    np.save(folder / "windows.npy", windows.astype(np.uint8).repeat(10, axis=3).repeat(12, axis=4))


@pytest.fixture
def results(once, start):
    """The results of a backend for the same file: arrays by name, and the folder with the model that it saved."""

    def of(backend):
        def compute(folder):
            run(backend, [WORKER], start / "start.keras", start / "windows.npy", folder / "results.npz")

        folder = once(f"backends-{backend}", compute)
        return dict(np.load(folder / "results.npz")), folder

    return of


@pytest.mark.parametrize("backend", [pytest.param(name, marks=needs(name)) for name in ("jax", "torch")])
def test_backends_agree_on_losses_and_on_weights_after_five_steps(results, start, backend):
    (ours, _), (theirs, _) = results("tensorflow"), results(backend)

    assert set(ours) == set(theirs)
    losses = [name for name in ours if name.startswith("metric/") and name.endswith("loss")]
    assert len(losses) == 9  # the total loss, and one for each of four levels and two tasks
    for name in losses:
        assert theirs[name] == pytest.approx(ours[name], rel=1e-5), name
    weights = [name for name in ours if name.startswith("weight/")]
    for name in weights:
        np.testing.assert_allclose(theirs[name], ours[name], atol=1e-4, rtol=1e-4, err_msg=name)
    before = {variable.path: np.array(variable) for variable in keras.models.load_model(start / "start.keras").weights}
    moved = [np.abs(ours[name] - before[name.removeprefix("weight/")]).max() for name in weights if "kernel" in name]
    assert max(moved) > 1e-2  # a hundred times the tolerance


@pytest.mark.parametrize("backend", [pytest.param(name, marks=needs(name)) for name in ("jax", "torch")])
def test_a_file_saved_under_another_backend_loads(results, backend):
    saved, folder = results(backend)

    loaded = keras.models.load_model(folder / "results.keras")

    for variable in loaded.weights:
        if "seed" not in variable.path:
            np.testing.assert_array_equal(np.array(variable), saved[f"weight/{variable.path}"])


WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder

class AllButTensorFlow:  # as if it were not installed
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = AllButTensorFlow
from hdc_keras_cli.main import main
main()
"""


@pytest.mark.parametrize("backend", [pytest.param(name, marks=needs(name)) for name in ("jax", "torch")])
def test_pretraining_evaluation_and_export_run_without_tensorflow(tmp_path, backend):
    code = ["-c", WITHOUT_TENSORFLOW]
    printed = run(backend, code, "pretrain", "--smoke", "--set", "contrast.levels.spatial=[P5]", cwd=tmp_path)
    assert "The run is in runs/moving-shapes-smoke" in printed and backend in printed

    folder = tmp_path / "runs" / "moving-shapes-smoke"
    assert (folder / "views.png").exists() and list((folder / "events").glob("events.*"))
    printed = run(backend, code, "evaluate", "--run", folder, "--protocol", "knn", cwd=tmp_path)
    assert "32 of 32 videos evaluated, 0 failed" in printed
    run(backend, code, "export", "--run", folder, "--format", "keras", cwd=tmp_path)
    assert (folder / "export").exists()


STARTS = """
import sys
from hdc_keras_cli.console import start_backend
start_backend()
print(sorted({"jax", "matplotlib", "sklearn"} & sys.modules.keys()))
import matplotlib.pyplot, sklearn
"""


@pytest.mark.parametrize("backend", [pytest.param(name, marks=needs(name)) for name in NEEDS])
def test_commands_start_without_packages_that_they_may_never_use(backend):
    assert run(backend, ["-c", STARTS]).splitlines()[-1] == ("['jax']" if backend == "jax" else "[]")
