"""Which frames a clip is made of: pure functions of the seed, the epoch, the video and the specification.

Same inputs, same frames, on any machine, in any order, after any restart.
"""

import hashlib
from collections.abc import Iterable
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
        windows: 2, or 1 for the anchor window alone.
    """

    frames: int
    stride: int = 1
    min_gap: int = 0
    strides: tuple[int, ...] = (1,)
    reverse_probability: float = 0.0
    windows: int = 2


def random_generator(*key: int | str) -> np.random.Generator:
    """A generator that depends on nothing but `key`."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


def video_keys(video_ids: Iterable[str]) -> np.ndarray:
    """What stands for each video in its draws: (videos,) uint64."""
    digests = b"".join(hashlib.blake2b(video_id.encode(), digest_size=8).digest() for video_id in video_ids)
    return np.frombuffer(digests, "<u8")


def sample_windows(seed: int, epoch: int, keys: np.ndarray, frame_counts: np.ndarray, spec: WindowSpec) -> np.ndarray:
    """Frame indices of the anchor window `t_a` and of the second window `t_s` of some videos.

    A video's windows do not depend on which others are asked for with it. A video shorter than a window is looped from
    its first frame.

    Args:
        seed: seed of the run.
        epoch: number of the epoch.
        keys: (videos,) uint64, of `video_keys`.
        frame_counts: (videos,) integers, at least 1.
        spec: how windows are drawn.

    Returns:
        (videos, spec.windows, frames) int64; `[:, 0]` is `t_a`, `[:, 1]` is `t_s`.
    """
    counts = np.asarray(frame_counts, np.int64)
    if counts.min() < 1:
        raise ValueError(f"`frame_counts` must be at least 1. Received: {counts.min()}")
    draws = _uniform_draws(seed, epoch, keys, 4)
    anchor_starts = _scaled(draws[0], _start_counts(counts, spec.frames, np.array(spec.stride)))
    strides = np.array(spec.strides, np.int64)[_scaled(draws[1], np.array(len(spec.strides)))]
    second_starts = _starts_with_gap(draws[2], anchor_starts, spec.min_gap, _start_counts(counts, spec.frames, strides))
    steps = np.arange(spec.frames)
    backwards = (draws[3] < spec.reverse_probability)[:, None]
    anchors = anchor_starts[:, None] + spec.stride * steps
    seconds = second_starts[:, None] + strides[:, None] * np.where(backwards, steps[::-1], steps)
    return np.stack([anchors, seconds][: spec.windows], axis=1) % counts[:, None, None]


def evenly_spaced_clips(frame_count: int, clips: int, frames: int, stride: int) -> np.ndarray:
    """Frame indices of `clips` clips whose starts are spread evenly from the video's start to its end.

    Returns:
        (clips, frames) int64. A video shorter than a clip is looped.
    """
    if frame_count < 1:
        raise ValueError(f"`frame_count` must be at least 1. Received: {frame_count}")
    last_start = int(_start_counts(np.array(frame_count), frames, np.array(stride))) - 1
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


def _start_counts(frame_counts: np.ndarray, frames: int, strides: np.ndarray) -> np.ndarray:
    """How many frames of each video a window may start at."""
    spans = (frames - 1) * strides + 1
    # A video too short for the window loops, so that any of its frames may come first.
    return np.where(frame_counts >= spans, frame_counts - spans + 1, frame_counts)


def _starts_with_gap(
    draws: np.ndarray, anchor_starts: np.ndarray, min_gap: int, start_counts: np.ndarray
) -> np.ndarray:
    """Starts drawn from those that are at least `min_gap` away from the anchor's, on either side of it."""
    farthest = np.maximum(anchor_starts, start_counts - 1 - anchor_starts)
    # In a video too short for the gap, the farthest start is the nearest thing to it.
    gaps = np.minimum(min_gap, farthest)
    before = np.clip(anchor_starts - gaps + 1, 0, start_counts)
    # Without a gap the anchor's own start counts on the side before it alone.
    first_after = np.maximum(anchor_starts + np.maximum(gaps, 1), before)
    after = np.maximum(start_counts - first_after, 0)
    chosen = _scaled(draws, before + after)
    return np.where(chosen < before, chosen, first_after + chosen - before)


def _scaled(draws: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Draws from [0, 1) as integers below `counts`."""
    return (draws * counts).astype(np.int64)


def _uniform_draws(seed: int, epoch: int, keys: np.ndarray, draws: int) -> np.ndarray:
    """Numbers in [0, 1) that depend on seed, epoch, key and their own position alone: (draws, videos) float64.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), started for each video from a hash of seed, epoch and key: the only
    generator here whose whole state is one integer, so that a batch of videos is drawn at once.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # it counts modulo 2^64
        state = _mixed(np.asarray(keys, np.uint64) ^ _epoch_start(seed, epoch))
        positions = np.arange(1, draws + 1, dtype=np.uint64)[:, None]
        return (_mixed(state + positions * golden) >> np.uint64(11)) * 2.0**-53


@lru_cache(maxsize=2)
def _epoch_start(seed: int, epoch: int) -> np.uint64:
    return random_generator("windows", seed, epoch).integers(2**64, dtype=np.uint64)


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
