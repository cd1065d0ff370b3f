"""Shared fixtures: real video files, written by a real encoder, and the command line."""

import contextlib
import fcntl
import io
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

# Set before anything imports TensorFlow. The commands turn oneDNN on too, by importing hdc_keras first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# XLA spends most of a test's time on optimising code that runs for milliseconds.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Wide enough that messages are not wrapped in the middle.
COLUMNS = 200


def pytest_configure(config):
    """Share what JAX compiles among all tests, workers and processes of a session; they inherit the environment."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="hdc-keras-jax-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """Create a folder once for all workers of a test session: `once("name", make)` calls `make(folder)` under a lock.

    All tests share the folder, so they must not change it.
    """
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent

    def made(name, make):
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # left by a worker whose `make` failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session", autouse=True)
def cache_folder(once):
    """The cache of the session: moving shapes are rendered once, and the user's own cache is never read."""
    folder = once("cache", lambda folder: None)
    os.environ["HDC_KERAS_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shapes_folder(cache_folder):
    """72 moving shapes videos: one training and one test video for each pair of classes."""
    from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes

    return ensure_moving_shapes(MovingShapes(1, 1)).parent


@pytest.fixture(scope="session")
def smoke_run(once, shapes_folder):
    """The run directory of `hdc-keras pretrain --smoke`, read-only, and what the command printed."""

    def make(folder):
        done = run_command(folder, "pretrain", "--smoke")
        assert done.code == 0, done.out
        (folder / "printed.txt").write_text(done.out)

    folder = once("smoke", make)
    return folder / "runs" / "moving-shapes-smoke", (folder / "printed.txt").read_text()


@pytest.fixture
def smoke_copy(smoke_run, tmp_path):
    """A copy of the smoke run, for commands that write into it."""
    return Path(shutil.copytree(smoke_run[0], tmp_path / "smoke"))


def numbered_frames(count: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Frames that show their number: frame i has grey level 8 i."""
    assert 8 * count <= 256
    return np.broadcast_to((8 * np.arange(count))[:, None, None, None], (count, *size, 3)).astype(np.uint8)


def frame_numbers(clip: np.ndarray) -> np.ndarray:
    """The numbers of `numbered_frames` in (..., height, width, 3)."""
    return np.rint(clip.mean(axis=(-3, -2, -1)) / 8).astype(int)


@pytest.fixture
def class_folder(tmp_path):
    """Eight videos in two class folders. A test may change them."""
    return write_class_folder(tmp_path / "videos")


@pytest.fixture(scope="session")
def class_folder_once(tmp_path_factory):
    """The same eight videos, shared by the tests of a worker; read-only."""
    return write_class_folder(tmp_path_factory.mktemp("once") / "videos")


def write_class_folder(folder):
    from hdc_keras.data.synthetic import MovingShapes, render_video, write_video

    spec = MovingShapes(frames=24, size=32)
    for label, motion in (("across", "right"), ("around", "circling")):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            frames = render_video(spec, "dots", motion, number)
            write_video(folder / label / f"{number}.mp4", frames)
    return folder


@dataclass
class Finished:
    """How a command ended: its exit code, and what it printed to stdout followed by stderr."""

    code: int
    out: str


def run_command(folder, *arguments, timeout=240):
    """Run the installed command in a new process whose working folder is `folder`."""
    done = subprocess.run(
        [Path(sys.executable).parent / "hdc-keras", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "COLUMNS": str(COLUMNS)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Finished(done.returncode, done.stdout + done.stderr)


def call_command(folder, *arguments, columns=COLUMNS):
    """Run the command line in the test's process, with `folder` as the working folder.

    This saves the seconds that a new process needs to import TensorFlow. Commands that train, and tests of signals or
    of what native code prints, use `run_command`.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["hdc-keras", *map(str, arguments)])
        patch.setattr(sys, "excepthook", sys.excepthook)  # undoes Typer's change
        patch.setenv("COLUMNS", str(columns))
        # Imported only now, because a console checks when it is created whether its output is a terminal.
        from hdc_keras_cli.console import console, errors
        from hdc_keras_cli.main import main

        patch.setattr(console, "width", columns)
        patch.setattr(errors, "width", columns)
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return Finished(code, out.getvalue() + err.getvalue())


@pytest.fixture
def hdc_keras_command(tmp_path):
    """Run the installed command in an empty folder, in a new process."""
    return partial(run_command, tmp_path)


@pytest.fixture
def hdc_keras_in_process(tmp_path):
    """Run the command line in an empty folder, in the test's process."""
    return partial(call_command, tmp_path)
