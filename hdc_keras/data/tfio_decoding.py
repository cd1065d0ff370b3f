"""Decodes with tensorflow-io's `decode_video` (`data.decoder: tfio`), an alternative to the default decoder.

tensorflow-io needs TensorFlow 2.17 and FFmpeg 4, and always decodes whole videos. If a video's width is not a multiple
of 16, it writes past its buffer and crashes the process (seen with tensorflow-io 0.37.1); such videos are refused here.
"""

import ctypes
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import av
import numpy as np

from hdc_keras.data.decoding import open_container
from hdc_keras.data.members import member_of, open_video_file
from hdc_keras.errors import ConfigError, VideoDecodeError

_WIDTH_MULTIPLE = 16
_LIBRARIES = ("libavcodec.so.58", "libavformat.so.58", "libavutil.so.56", "libswscale.so.5")


def require_tfio() -> None:
    """Raise a `ConfigError` that names what is missing if `decode` is not available."""
    problem = _missing_part()
    if problem:
        raise ConfigError(f"`data.decoder`: tfio is not available: {problem}. Use `pyav`, which is always available.")


def _missing_part() -> str | None:
    if sys.version_info >= (3, 13):
        return "tensorflow-io has no wheel for Python 3.13"
    try:
        version("tensorflow-io")
        tensorflow = version("tensorflow")
    except PackageNotFoundError as error:
        return f"{error.name} is not installed; pip install 'hdc-keras[tfio]' installs it with TensorFlow 2.17.1"
    if not tensorflow.startswith("2.17."):
        return f"tensorflow-io 0.37.1 loads its kernels only with TensorFlow 2.17, but {tensorflow} is installed"
    for library in _LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            return f"FFmpeg 4 is not on the library path ({error})"
    return None


@lru_cache(maxsize=20_000)
def _width_and_rotation(path: str) -> tuple[int, int]:
    """Width in pixels and stored rotation in quarter turns, which tensorflow-io does not report."""
    try:
        with open_container(path) as container:
            frame = next(container.decode(video=0))
            return frame.width, round(frame.rotation / 90) % 4
    except (av.FFmpegError, OSError, ValueError, IndexError, StopIteration) as error:
        raise VideoDecodeError(path, str(error) or type(error).__name__) from error


def decode(path: str, indices: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the frames at `indices`, like `decoding.decode`. The whole video is decoded.

    Raises:
        VideoDecodeError: the file cannot be decoded, or its width is not a multiple of 16.
    """
    import tensorflow as tf
    import tensorflow_io as tfio

    width, quarter_turns = _width_and_rotation(path)
    if width % _WIDTH_MULTIPLE:
        raise VideoDecodeError(
            path, f"is {width} pixels wide; tensorflow-io is safe only for multiples of {_WIDTH_MULTIPLE}"
        )
    indices = np.asarray(indices)
    try:
        # Keeps decoded frames out of GPU memory.
        with tf.device("CPU"):
            frames = tfio.experimental.ffmpeg.decode_video(_content(path))
            needed, places = np.unique(indices, return_inverse=True)
            # A container may list a few more frames than can be decoded; the last decoded frame replaces them.
            pixels = tf.gather(frames, np.minimum(needed, frames.shape[0] - 1))
            pixels = tf.image.rot90(pixels, quarter_turns) if quarter_turns else pixels
            if size and tuple(pixels.shape[1:3]) != size:
                pixels = tf.cast(tf.round(tf.image.resize(pixels, size, "area")), tf.uint8)
    except tf.errors.OpError as error:
        raise VideoDecodeError(path, str(error.message).rpartition("}} ")[2].split(" [Op:")[0]) from error
    return pixels.numpy()[places.reshape(indices.shape)]


def _content(path: str) -> Any:
    """The bytes of a video, as a tensor."""
    import tensorflow as tf

    if member_of(path) is None:
        return tf.io.read_file(path)
    with open_video_file(path) as file:
        return tf.constant(file.read())
