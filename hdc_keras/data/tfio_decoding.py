"""Decoding with tensorflow-io's `decode_video` (`data.decoder: tfio`), for those who have to use that.

It loads with TensorFlow 2.17 and FFmpeg 4 alone. It decodes whole videos, and writes past its memory for frames whose
width is no multiple of 16, which ends the process (seen with tensorflow-io 0.37.1); such videos are refused here.
"""

import ctypes
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import av
import numpy as np

from hdc_keras.errors import ConfigError, VideoDecodeError

_SAFE_WIDTHS = 16
_LIBRARIES = ("libavcodec.so.58", "libavformat.so.58", "libavutil.so.56", "libswscale.so.5")


def require_tfio() -> None:
    """Raise a `ConfigError` that names the part that is missing, where `decode` cannot work."""
    problem = _missing_part()
    if problem:
        raise ConfigError(f"`data.decoder`: tfio cannot be used here: {problem}. Use `pyav`, which needs nothing.")


def _missing_part() -> str | None:
    if sys.version_info >= (3, 13):
        return "tensorflow-io has no wheel for Python 3.13"
    try:
        version("tensorflow-io")
        tensorflow = version("tensorflow")
    except PackageNotFoundError as error:
        return f"{error.name} is not installed; pip install 'hdc-keras[tfio]' brings it, with TensorFlow 2.17.1"
    if not tensorflow.startswith("2.17."):
        return f"tensorflow-io 0.37.1 loads its kernels with TensorFlow 2.17 alone, and {tensorflow} is installed"
    for library in _LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            return f"FFmpeg 4 is not on the library path ({error})"
    return None


@lru_cache(maxsize=20_000)
def _facts(path: str) -> tuple[int, int]:
    """Width in pixels and stored quarter turns, which tensorflow-io does not tell."""
    try:
        with av.open(path) as container:
            frame = next(container.decode(video=0))
            return frame.width, round(frame.rotation / 90) % 4
    except (av.FFmpegError, OSError, ValueError, IndexError, StopIteration) as error:
        raise VideoDecodeError(path, str(error) or type(error).__name__) from error


def decode(path: str, indices: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the frames at `indices`, as `decoding.decode` does, by decoding all of the video.

    Raises:
        VideoDecodeError: the file cannot be decoded, or its width is no multiple of 16.
    """
    import tensorflow as tf
    import tensorflow_io as tfio

    width, quarter_turns = _facts(path)
    if width % _SAFE_WIDTHS:
        raise VideoDecodeError(path, f"is {width} pixels wide; tensorflow-io is safe for multiples of {_SAFE_WIDTHS}")
    indices = np.asarray(indices)
    try:
        # A process may hold a GPU, where neither this nor its result has a place.
        with tf.device("CPU"):
            frames = tfio.experimental.ffmpeg.decode_video(tf.io.read_file(path))
            needed, places = np.unique(indices, return_inverse=True)
            # Containers promise a few frames more than decode: the last one stands for them.
            chosen = tf.gather(frames, np.minimum(needed, frames.shape[0] - 1))
            chosen = tf.image.rot90(chosen, quarter_turns) if quarter_turns else chosen
            if size and tuple(chosen.shape[1:3]) != size:
                chosen = tf.cast(tf.round(tf.image.resize(chosen, size, "area")), tf.uint8)
    except tf.errors.OpError as error:
        raise VideoDecodeError(path, str(error.message).rpartition("}} ")[2].split(" [Op:")[0]) from error
    return chosen.numpy()[places.reshape(indices.shape)]
