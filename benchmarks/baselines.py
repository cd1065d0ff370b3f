"""What a classifier can tell of a video without a network: the baselines of `real_video.py`.

This file is imported by `real_video.py`. It has no command.
"""

from collections.abc import Callable, Sequence

import av
import numpy as np

from hdc_keras.data.decoding import count_frames, decode

# Frames are compared at this (height, width).
SMALL_FRAME = (18, 24)


def metadata(path: str) -> list[float]:
    """Width, height, frames per second and number of frames."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        return [stream.width, stream.height, float(stream.average_rate or 0), count_frames(path)]


def middle_frame(path: str) -> np.ndarray:
    """The middle frame, small and flat."""
    return decode(path, np.array([count_frames(path) // 2]), SMALL_FRAME).reshape(-1).astype(float)


def difference_image(path: str) -> np.ndarray:
    """The mean absolute difference between neighbouring frames, small and flat."""
    frames = decode(path, np.arange(count_frames(path)), SMALL_FRAME).astype(np.int16)
    return np.abs(np.diff(frames, axis=0)).mean(axis=0).reshape(-1)


BASELINES: dict[str, Callable[[str], Sequence[float] | np.ndarray]] = {
    "ridge on metadata": metadata,
    "ridge on the middle frame": middle_frame,
    "ridge on the frame difference": difference_image,
}
