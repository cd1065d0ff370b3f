"""Which frames a clip consists of: pure functions of the seed, the epoch, the video and the specification.

The same inputs give the same frames on any machine, in any order, after any restart.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hdc_keras.errors import DataError


@dataclass(frozen=True)
class WindowSpec:
    """How the two windows of a video are drawn. All distances are in frames of the source video.

    Args:
        frames: frames per window.
        stride: distance between successive frames of the anchor window.
        min_gap: minimum distance between the first frames of the two windows, if the video is long enough.
        strides: strides from which the second window's stride is drawn.
        reverse_probability: probability that the second window runs backwards.
        windows: 2, or 1 for only the anchor window.
    """

    frames: int
    stride: int = 1
    min_gap: int = 0
    strides: tuple[int, ...] = (1,)
    reverse_probability: float = 0.0
    windows: int = 2


def random_generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends only on `key`."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


def video_keys(video_ids: Iterable[str]) -> np.ndarray:
    """Hash of each video id, from which the video's random draws are derived: (videos,) uint64."""
    digests = b"".join(hashlib.blake2b(video_id.encode(), digest_size=8).digest() for video_id in video_ids)
    return np.frombuffer(digests, "<u8")


def sample_windows(seed: int, epoch: int, keys: np.ndarray, frame_counts: np.ndarray, spec: WindowSpec) -> np.ndarray:
    """Frame indices of the anchor window `t_a` and the second window `t_s` of each video.

    The windows of a video do not depend on the other videos in the call. A video shorter than a window is looped from
    its first frame.

    Args:
        seed: seed of the run.
        epoch: number of the epoch.
        keys: (videos,) uint64 from `video_keys`.
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
    """Frame indices of `clips` clips, evenly spaced from the start of the video to its end; one clip is the middle one.

    Returns:
        (clips, frames) int64. A video shorter than a clip is looped; a single clip of it starts at the first frame.
    """
    if frame_count < 1:
        raise ValueError(f"`frame_count` must be at least 1. Received: {frame_count}")
    if clips == 1:
        starts = np.array([max(0, frame_count - (frames - 1) * stride - 1) // 2])
    else:
        last_start = int(_start_counts(np.array(frame_count), frames, np.array(stride))) - 1
        starts = np.linspace(0, last_start, clips).round().astype(np.int64)
    return (starts[:, None] + stride * np.arange(frames)) % frame_count


def count_steps(videos: int, batch_size: int) -> int:
    """Number of batches per epoch. Raises `DataError` if the videos do not fill one batch."""
    if not videos:
        raise DataError(
            "the set has no training videos: all of them are in other splits. Add videos for training, such as a "
            "folder train/, or list the videos in a manifest with a `split` column."
        )
    if videos == 1:
        raise DataError("only 1 training video. Expected at least 2, which are contrasted with each other. Add videos.")
    if videos < batch_size:
        raise DataError(
            f"only {videos} training videos, but `train.batch_size` is {batch_size} and every batch needs that many "
            f"different videos. Lower it with --set train.batch_size={max(2, videos // 2)}, or add videos."
        )
    return videos // batch_size


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` videos: (count,) int64, read-only.

    Cached because loading a video needs it. Around the end of an epoch, the orders of two epochs are in use.
    """
    order = random_generator("order", seed, epoch).permutation(count)
    order.flags.writeable = False
    return order


def _start_counts(frame_counts: np.ndarray, frames: int, strides: np.ndarray) -> np.ndarray:
    """Number of frames of each video at which a window may start."""
    spans = (frames - 1) * strides + 1
    # A video shorter than the window is looped, so the window may start at any frame.
    return np.where(frame_counts >= spans, frame_counts - spans + 1, frame_counts)


def _starts_with_gap(
    draws: np.ndarray, anchor_starts: np.ndarray, min_gap: int, start_counts: np.ndarray
) -> np.ndarray:
    """Choose starts at a distance of at least `min_gap` from the anchor's start, before or after it.

    Args:
        draws: (videos,) random numbers in [0, 1).
        anchor_starts: (videos,) first frames of the anchor windows.
        min_gap: minimum distance in frames.
        start_counts: (videos,) number of possible starts.

    Returns:
        (videos,) int64 first frames.
    """
    farthest = np.maximum(anchor_starts, start_counts - 1 - anchor_starts)
    # If the video is too short for the gap, the farthest start is chosen.
    gaps = np.minimum(min_gap, farthest)
    before = np.clip(anchor_starts - gaps + 1, 0, start_counts)
    # If the gap is 0, `before` already includes the anchor's start, so `after` must not count it again.
    first_after = np.maximum(anchor_starts + np.maximum(gaps, 1), before)
    after = np.maximum(start_counts - first_after, 0)
    chosen = _scaled(draws, before + after)
    return np.where(chosen < before, chosen, first_after + chosen - before)


def _scaled(draws: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Scale draws from [0, 1) to integers below `counts`."""
    return (draws * counts).astype(np.int64)


def _uniform_draws(seed: int, epoch: int, keys: np.ndarray, draws: int) -> np.ndarray:
    """(draws, videos) float64 in [0, 1); each depends only on seed, epoch, key and the number of the draw.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), seeded for each video with a hash of seed, epoch and key. The state
    of this generator is a single integer, which allows drawing for a whole batch of videos at once.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # Overflow is intended: the arithmetic is modulo 2^64.
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
