"""Video files to frames, through PyAV (FFmpeg). Only the needed part of a file is decoded."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from hdc_keras.errors import VideoDecodeError

# Frame indexes are kept for this many videos (about 2.5 kB each at 300 frames): after an epoch, no file is read twice.
_INDEX_CACHE_SIZE = 20_000
# Decoding up to this many unneeded frames is cheaper than a seek, which flushes the decoder (our choice).
_FRAMES_WORTH_A_SEEK = 8
# Containers list up to a few frames more than decode (2 is common); more missing than this means a damaged file.
_MISSING_FRAMES_TOLERATED = 8
# A damaged header can claim any size. 8K video has 33 million pixels a frame.
_MAX_PIXELS = 64_000_000

# (height, width) in pixels, or the greatest length of the shorter one, which keeps the shape.
FrameSize = tuple[int, int] | int

av.logging.set_level(av.logging.PANIC)


@dataclass(frozen=True)
class FrameIndex:
    """What a file's packets say about its frames, in presentation order.

    Attributes:
        count: number of frames.
        timestamps: (count,) int64 presentation times in the stream's time base, or `None` where the container has
            none that can be trusted; such a file is decoded from its start, counting.
        key_frames: positions of the key frames, ascending.
        time_base: seconds in a unit of `timestamps`.
        rate: the container's average frames a second; 0 where it has none.
    """

    count: int
    timestamps: np.ndarray | None
    key_frames: np.ndarray
    time_base: float
    rate: float

    def at_rate(self, rate: float) -> np.ndarray:
        """Positions of the frames on screen at `rate` evenly spaced moments a second, from the first frame on.

        Raises:
            ValueError: the file does not say when its frames are shown.
        """
        if self.timestamps is not None:
            seconds = (self.timestamps - self.timestamps[0]) * self.time_base
        elif self.rate:
            seconds = np.arange(self.count) / self.rate
        else:
            raise ValueError("says neither times nor a frame rate, which resampling needs")
        last = seconds[-1] - seconds[-2] if self.count > 1 else 0.0
        moments = np.arange(max(1, round((seconds[-1] + last) * rate))) / rate
        # A moment that rounding puts just before its frame belongs to that frame.
        return np.searchsorted(seconds, moments + 1e-6, side="right") - 1


@lru_cache(maxsize=_INDEX_CACHE_SIZE)
def index_frames(path: str) -> FrameIndex:
    """Read a file's packets, decoding none.

    A container's own frame count is not trusted: it is often missing and sometimes too high.

    Raises:
        VideoDecodeError: the file is no video, is empty or cannot be read.
    """
    try:
        with av.open(path) as container:
            stream = _video_stream(container)
            packets = [(p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size]
            is_avi = container.format.name == "avi"
            time_base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoDecodeError(path, _one_line(error)) from error
    if not packets:
        raise VideoDecodeError(path, "holds no video frame")
    times = [pts for pts, _, _ in packets]
    # AVI stores no presentation times: what FFmpeg reports is right only while frames are stored in display order.
    trusted = None not in times and len(set(times)) == len(times)
    if is_avi:
        trusted = trusted and all(pts == dts for pts, dts, _ in packets)
    if not trusted:
        return FrameIndex(len(packets), None, np.zeros(1, np.int64), time_base, rate)
    order = np.argsort(np.array(times))
    key_frames = np.flatnonzero(np.array([key for _, _, key in packets])[order])
    # A damaged file may mark none; decoding then begins with the first frame.
    key_frames = key_frames if key_frames.size else np.zeros(1, np.int64)
    return FrameIndex(len(packets), np.array(times)[order], key_frames, time_base, rate)


def count_frames(path: str) -> int:
    """How many frames a file holds. Raises `VideoDecodeError`, as `index_frames` does."""
    return index_frames(path).count


def decode(path: str, indices: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the frames at `indices`, in that order; an index may come more than once.

    The file is entered at the last key frame before the first needed frame, and again wherever a later key frame
    saves decoding. A rotation stored in the file is applied.

    Args:
        path: a video file that FFmpeg reads.
        indices: frame numbers in presentation order, any integer shape.
        size: (height, width) of the result in pixels; the video's own size when `None`.

    Returns:
        `indices.shape + (height, width, 3)` uint8, RGB.

    Raises:
        VideoDecodeError: the file, or one of these frames, cannot be decoded.
        ValueError: an index is outside the video.
    """
    index = index_frames(path)
    indices = np.asarray(indices)
    if indices.size == 0 or indices.min() < 0 or indices.max() >= index.count:
        raise ValueError(f"`indices` must lie in [0, {index.count}) for {path}. Received: {indices}")
    frames = dict(_decoded(path, index, np.unique(indices), _Converter(size)))
    stacked = np.stack([frames[position] for position in indices.ravel().tolist()])
    return stacked.reshape(*indices.shape, *stacked.shape[1:])


def stream_frames(path: str, size: FrameSize, rate: float | None = None) -> Iterator[np.ndarray]:
    """All frames of a video in their order, a few in memory at a time.

    Args:
        path: a video file that FFmpeg reads.
        size: (height, width) in pixels, or the length that the shorter of the two is shrunk to where it is longer.
        rate: frames a second to take; every frame as it comes when `None`.

    Yields:
        (height, width, 3) uint8, RGB, upright.

    Raises:
        VideoDecodeError: the file cannot be decoded, or has no times where `rate` needs them.
    """
    index = index_frames(path)
    try:
        wanted = np.arange(index.count) if rate is None else index.at_rate(rate)
    except ValueError as error:
        raise VideoDecodeError(path, str(error)) from error
    repeats = dict(zip(*np.unique(wanted, return_counts=True), strict=True))
    for position, frame in _decoded(path, index, np.unique(wanted), _Converter(size)):
        yield from [frame] * repeats[position]


def _decoded(
    path: str, index: FrameIndex, wanted: np.ndarray, convert: "_Converter"
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (position, pixels) for every wanted position."""
    try:
        with av.open(path) as container:
            stream = _video_stream(container)
            # Several videos are decoded at once; threads inside each of them would only compete.
            stream.codec_context.thread_count = 1
            walk = _by_counting if index.timestamps is None else _by_seeking
            for position, frame in walk(container, stream, index, wanted):
                yield position, convert(frame)
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise VideoDecodeError(path, _one_line(error)) from error


def _video_stream(container: av.container.InputContainer) -> VideoStream:
    if not container.streams.video:
        raise ValueError("holds no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError("is encoded in a way that FFmpeg does not know")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > _MAX_PIXELS:
        raise ValueError(f"claims frames of {width} x {height} pixels, more than {_MAX_PIXELS:,} pixels")
    return stream


def _by_seeking(
    container: av.container.InputContainer, stream: VideoStream, index: FrameIndex, wanted: np.ndarray
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (position, frame) for every wanted position, by timestamp, seeking where that saves decoding."""
    timestamps = index.timestamps
    assert timestamps is not None
    # What nothing else is decoded from and nobody wants need not be decoded. The last frames are always: those that
    # containers promise in vain are shown as the last that there is.
    kept = {*timestamps[wanted].tolist(), *timestamps[-_MISSING_FRAMES_TOLERATED:].tolist()}
    for segment in _segments(wanted, index.key_frames):
        container.seek(int(timestamps[segment[0]]), stream=stream)
        due, frame = deque(segment), None
        for frame in _frames_of(container, stream, kept):
            # A frame that the decoder dropped is shown as the next one that it gives.
            while due and frame.pts is not None and frame.pts >= timestamps[due[0]]:
                yield due.popleft(), frame
            if not due:
                break
        if due:
            ended = -1 if frame is None else int(np.searchsorted(timestamps, frame.pts))
            yield from _past_the_end(due, ended, frame, index)


def _frames_of(container: av.container.InputContainer, stream: VideoStream, kept: set[int]) -> Iterator[av.VideoFrame]:
    """Yield the frames from here on, but for those not in `kept` that no other frame is decoded from."""
    for packet in container.demux(stream):
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in kept else "NONREF"
        yield from packet.decode()


def _by_counting(
    container: av.container.InputContainer, stream: VideoStream, index: FrameIndex, wanted: np.ndarray
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (position, frame) for every wanted position, decoding from the start and counting."""
    due, position, frame = deque(wanted.tolist()), -1, None
    for position, frame in enumerate(container.decode(stream)):
        if position == due[0]:
            yield due.popleft(), frame
            if not due:
                return
    yield from _past_the_end(due, position, frame, index)


def _past_the_end(
    due: Iterable[int], ended: int, last: av.VideoFrame | None, index: FrameIndex
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The last frame for a few positions that packets promise and decoding does not give; an error for many."""
    for position in due:
        if last is None or position - ended > _MISSING_FRAMES_TOLERATED:
            raise ValueError(f"decoding ends after {ended + 1} of {index.count} frames")
        yield position, last


def _segments(wanted: np.ndarray, key_frames: np.ndarray) -> list[list[int]]:
    """Split sorted positions wherever entering at a later key frame is cheaper than decoding on."""
    segments: list[list[int]] = []
    for position in wanted.tolist():
        entry = key_frames[max(0, np.searchsorted(key_frames, position, side="right") - 1)]
        if segments and entry - segments[-1][-1] <= _FRAMES_WORTH_A_SEEK:
            segments[-1].append(position)
        else:
            segments.append([position])
    return segments


class _Converter:
    """Decoded frames to RGB arrays, upright: of one size, of at most one short side (an integer), or as they are."""

    def __init__(self, size: FrameSize | None):
        self.size = size
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        quarter_turns = round(frame.rotation / 90) % 4
        if isinstance(self.size, int):
            # The first frame settles the size, so that all frames of a video are alike.
            scale = min(1.0, self.size / min(frame.height, frame.width))
            shown = (frame.width, frame.height) if quarter_turns % 2 else (frame.height, frame.width)
            self.size = max(1, round(shown[0] * scale)), max(1, round(shown[1] * scale))
        height, width = self.size or (None, None)
        if quarter_turns % 2:
            height, width = width, height
        # FFmpeg takes half as long again for an odd width, so one column is added, and taken off below.
        even = width and width + width % 2
        rgb = self.reformatter.reformat(frame, width=even, height=height, format="rgb24", interpolation="AREA")
        return np.rot90(rgb.to_ndarray()[:, :width], quarter_turns)


def _one_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, av.FFmpegError) else str(error)
    return " ".join((reason or "").split()) or type(error).__name__
