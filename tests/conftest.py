"""Shared fixtures: real video files, written by a real encoder, and the installed command."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

# Before anything imports TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Moving shapes are rendered once a session, and never found in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["HDC_KERAS_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shapes_folder(cache_folder):
    """72 moving shapes videos: one training and one test video for each pair of classes."""
    from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes

    return ensure_moving_shapes(MovingShapes(1, 1)).parent


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


@pytest.fixture
def hdc_keras_command(tmp_path):
    """Run the installed command in an empty folder, as a user does."""

    def run(*arguments: str | Path, timeout: float = 240) -> Finished:
        done = subprocess.run(
            [Path(sys.executable).parent / "hdc-keras", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout + done.stderr)

    return run
