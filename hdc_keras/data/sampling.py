"""Which frames a clip is made of: pure functions of the seed, the epoch, the video and the specification.

Same inputs, same frames, on any machine, in any order, after any restart.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class WindowSpec:
    """How the two windows of a video are drawn. All lengths are in frames of the source video.

    Args:
        frames: frames per clip.
        stride: step between two frames of the anchor window.
        min_gap: least distance between the two windows' first frames, as far as the video is long enough.
        strides: strides the second window may have; one is drawn.
        reverse_probability: how often the second window runs backwards.
    """

    frames: int
    stride: int = 1
    min_gap: int = 0
    strides: tuple[int, ...] = (1,)
    reverse_probability: float = 0.0


def random_generator(*key: int | str) -> np.random.Generator:
    """A generator that depends on nothing but `key`."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


def sample_windows(seed: int, epoch: int, video_id: str, frame_count: int, spec: WindowSpec) -> np.ndarray:
    """Frame indices of the anchor window `t_a` and of the second window `t_s`.

    A video shorter than a window is looped from its first frame.

    Returns:
        (2, frames) int64; row 0 is `t_a`, row 1 is `t_s`.
    """
    if frame_count < 1:
        raise ValueError(f"`frame_count` must be at least 1. Received: {frame_count}")
    generator = random_generator("windows", seed, epoch, video_id)
    anchor_start = int(generator.integers(_start_count(frame_count, spec.frames, spec.stride)))
    second_stride = int(generator.choice(spec.strides))
    second_start = _start_with_gap(
        generator, anchor_start, spec.min_gap, _start_count(frame_count, spec.frames, second_stride)
    )
    anchor = anchor_start + spec.stride * np.arange(spec.frames)
    second = second_start + second_stride * np.arange(spec.frames)
    if generator.random() < spec.reverse_probability:
        second = second[::-1]
    return np.stack([anchor, second]) % frame_count


def evenly_spaced_clips(frame_count: int, clips: int, frames: int, stride: int) -> np.ndarray:
    """Frame indices of `clips` clips whose starts are spread evenly from the video's start to its end.

    Returns:
        (clips, frames) int64. A video shorter than a clip is looped.
    """
    if frame_count < 1:
        raise ValueError(f"`frame_count` must be at least 1. Received: {frame_count}")
    last_start = _start_count(frame_count, frames, stride) - 1
    starts = np.linspace(0, last_start, clips).round().astype(np.int64)
    return (starts[:, None] + stride * np.arange(frames)) % frame_count


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` videos, (count,) int64, read-only.

    The last two are kept, since every video of an epoch asks for its order; around an epoch's end two are in use.
    """
    order = random_generator("order", seed, epoch).permutation(count)
    order.flags.writeable = False
    return order


def _start_count(frame_count: int, frames: int, stride: int) -> int:
    span = (frames - 1) * stride + 1
    # A video too short for the window loops, so that any of its frames may come first.
    return frame_count - span + 1 if frame_count >= span else frame_count


def _start_with_gap(generator: np.random.Generator, anchor_start: int, min_gap: int, starts: int) -> int:
    candidates = np.arange(starts)
    distances = np.abs(candidates - anchor_start)
    # In a video too short for the gap, the farthest start is the nearest thing to it.
    allowed = candidates[distances >= min(min_gap, int(distances.max()))]
    return int(generator.choice(allowed))
