"""Shared fixtures: real video files, written by a real encoder, and the installed command."""

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

# Before anything imports TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """Make a folder once for all workers of a test session: `once("name", make)` calls `make(folder)` under a lock.

    Whatever is made this way is shared, so tests only read it.
    """
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent

    def made(name, make):
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed half-way
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session", autouse=True)
def cache_folder(once):
    """Moving shapes are rendered once a session, and never found in the user's cache."""
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
    """The run that `hdc-keras pretrain --smoke` leaves, and what it printed; copy it to change it."""

    def make(folder):
        done = run_command(folder, "pretrain", "--smoke")
        assert done.code == 0, done.out
        (folder / "printed.txt").write_text(done.out)

    folder = once("smoke", make)
    return folder / "runs" / "moving-shapes-smoke", (folder / "printed.txt").read_text()


def numbered_frames(count: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Frames that tell their number: frame i has grey level 8 i."""
    assert 8 * count <= 256
    return np.broadcast_to((8 * np.arange(count))[:, None, None, None], (count, *size, 3)).astype(np.uint8)


def frame_numbers(clip: np.ndarray) -> np.ndarray:
    """The numbers of `numbered_frames` in (..., height, width, 3)."""
    return np.rint(clip.mean(axis=(-3, -2, -1)) / 8).astype(int)


@pytest.fixture
def class_folder(tmp_path):
    """Eight videos in two class folders, to change at will."""
    return write_class_folder(tmp_path / "videos")


@pytest.fixture(scope="session")
def class_folder_once(tmp_path_factory):
    """The same, made once, to read only."""
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
    code: int
    out: str


def run_command(folder, *arguments, timeout=240):
    """Run the installed command in a folder, in a process of its own."""
    done = subprocess.run(
        [Path(sys.executable).parent / "hdc-keras", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Finished(done.returncode, done.stdout + done.stderr)


@pytest.fixture
def hdc_keras_command(tmp_path):
    """Run the installed command in an empty folder, as a user does."""
    return partial(run_command, tmp_path)
