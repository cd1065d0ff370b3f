import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from hdc_keras.data import decoding, tfio_decoding
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import ConfigError, VideoDecodeError
from tests.conftest import numbered_frames


def installed(tensorflow: str):
    return lambda package: {"tensorflow-io": "0.37.1", "tensorflow": tensorflow}[package]


def nothing_installed(package):
    raise PackageNotFoundError(package)


def no_library(name):
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("python", "version", "library", "expected"),
    [
        ((3, 13), installed("2.17.1"), str, "no wheel for Python 3.13"),
        ((3, 12), nothing_installed, str, r"tensorflow-io is not installed; pip install 'hdc-keras\[tfio\]'"),
        ((3, 12), installed("2.21.0"), str, "only with TensorFlow 2.17, but 2.21.0 is installed"),
        ((3, 12), installed("2.17.1"), no_library, "FFmpeg 4 is not on the library path .libavcodec.so.58"),
    ],
)
def test_the_missing_requirement_is_named(monkeypatch, python, version, library, expected):
    monkeypatch.setattr(sys, "version_info", python)
    monkeypatch.setattr(tfio_decoding, "version", version)
    monkeypatch.setattr(tfio_decoding.ctypes, "CDLL", library)

    with pytest.raises(ConfigError, match=expected):
        FrameStore((16, 16), 0.0, "tfio")


@pytest.fixture
def tfio():
    """`tfio_decoding.decode`, in the environment that `.ci/run-tfio` creates."""
    try:
        tfio_decoding.require_tfio()
    except ConfigError as error:
        pytest.skip(str(error))
    return tfio_decoding.decode


def test_both_decoders_give_the_same_pixels(tfio, shapes_folder):
    path = str(next(shapes_folder.rglob("*.mp4")))
    indices = np.array([[0, 7], [11, 7]])

    np.testing.assert_array_equal(tfio(path, indices), decoding.decode(path, indices))
    # FFmpeg shrinks before it converts YUV to RGB, TensorFlow afterwards.
    resized = tfio(path, indices, (24, 32)).astype(int)
    assert np.abs(resized - decoding.decode(path, indices, (24, 32))).mean() < 2


def test_a_width_that_would_crash_the_process_is_refused(tfio, tmp_path):
    write_video(tmp_path / "v.mp4", numbered_frames(10, (48, 72)))

    with pytest.raises(VideoDecodeError, match="72 pixels wide; tensorflow-io is safe only for multiples of 16"):
        tfio(str(tmp_path / "v.mp4"), np.arange(4))


def test_a_file_that_is_not_a_video_is_named(tfio, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")

    with pytest.raises(VideoDecodeError, match=r"notes\.mp4: .*Invalid data"):
        tfio(str(tmp_path / "notes.mp4"), np.arange(4))
