"""Decodes frames of video files with PyAV (FFmpeg), and of folders of images. Only the needed part is decoded.

A path may also name a video inside a tar, Parquet or Arrow file, as `members` describes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from hdc_keras.data.folders import frames_in
from hdc_keras.data.members import member_of, open_video_file
from hdc_keras.errors import VideoDecodeError

# Number of videos whose frame index is cached (about 2.5 kB each at 300 frames). A file is scanned only once if the set
# has no more videos than that.
_INDEX_CACHE_SIZE = 20_000
# Decoding up to this many unneeded frames is cheaper than a seek, which flushes the decoder (our choice).
_FRAMES_WORTH_A_SEEK = 8
# A container may list a few more frames than can be decoded (2 is common). If more are missing, the file is damaged.
_MISSING_FRAMES_TOLERATED = 8
# Largest accepted frame, because a damaged header can claim any size. 8K video has 33 million pixels per frame.
_MAX_PIXELS = 64_000_000

# (height, width) in pixels; or the maximum length of the shorter side, which keeps the aspect ratio.
FrameSize = tuple[int, int] | int
# Start and end in seconds from the first frame; the end is not part of it.
Segment = tuple[float, float]
# Corrects moments that rounding put just before or after their frame. In seconds.
_ROUNDING = 1e-6

av.logging.set_level(av.logging.PANIC)


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a file in presentation order, as its packets describe them; or of a folder, in the order of names.

    Attributes:
        count: number of frames.
        timestamps: (count,) int64 presentation times in units of `time_base`. `None` if the container has no reliable
            ones; such a file is decoded from its start, counting frames.
        key_frames: positions of the key frames, ascending.
        time_base: seconds per unit of `timestamps`.
        rate: average frames per second according to the container; 0 if unknown.
    """

    count: int
    timestamps: np.ndarray | None
    key_frames: np.ndarray
    time_base: float
    rate: float

    def positions(self, rate: float | None = None, segment: Segment | None = None) -> np.ndarray:
        """Positions of frames in the order in which they are shown.

        Args:
            rate: frames per second, at evenly spaced moments; every frame once when `None`.
            segment: the part to show; all when `None`.

        Raises:
            ValueError: the file has neither timestamps nor a frame rate, or there is no frame in the segment.
        """
        if rate is None and segment is None:
            return np.arange(self.count)
        seconds = self._seconds()
        end = seconds[-1] + (seconds[-1] - seconds[-2] if self.count > 1 else 0.0)
        shown = np.arange(self.count)
        if segment is not None:
            first, last = np.searchsorted(seconds, np.array(segment) - _ROUNDING)
            if first == last:
                raise ValueError(f"has no frame from {segment[0]:g} to {segment[1]:g} s; it ends at {end:.2f} s")
            shown = shown[first:last]
        if rate is None:
            return shown
        end = end if shown[-1] + 1 == self.count else seconds[shown[-1] + 1]
        start = seconds[shown[0]]
        moments = start + np.arange(max(1, round((end - start) * rate))) / rate
        return np.searchsorted(seconds, moments + _ROUNDING, side="right") - 1

    def _seconds(self) -> np.ndarray:
        """(count,) when each frame is shown, from the first one."""
        if self.timestamps is not None:
            return (self.timestamps - self.timestamps[0]) * self.time_base
        if self.rate:
            return np.arange(self.count) / self.rate
        raise ValueError("has neither timestamps nor a frame rate, so it cannot be resampled or divided")


@lru_cache(maxsize=_INDEX_CACHE_SIZE)
def index_frames(path: str) -> FrameIndex:
    """Index the frames of a file from its packets, without decoding, or those of a folder of images.

    The frame count in the container's header is not used: it is often missing and sometimes too high.

    Raises:
        VideoDecodeError: the file is not a video, contains no frames or cannot be read.
    """
    if Path(path).is_dir():
        count = len(_images(path))
        if not count:
            raise VideoDecodeError(path, "is a folder without images")
        return FrameIndex(count, None, np.zeros(1, np.int64), 0.0, 0.0)
    try:
        with open_container(path) as container:
            stream = _video_stream(container)
            packets = [(p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size]
            is_avi = container.format.name == "avi"
            time_base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoDecodeError(path, _one_line(error)) from error
    if not packets:
        raise VideoDecodeError(path, "contains no video frames")
    times = [pts for pts, _, _ in packets]
    are_reliable = None not in times and len(set(times)) == len(times)
    # AVI stores no presentation times. FFmpeg derives them correctly only if frames are stored in display order.
    if is_avi:
        are_reliable = are_reliable and all(pts == dts for pts, dts, _ in packets)
    if not are_reliable:
        return FrameIndex(len(packets), None, np.zeros(1, np.int64), time_base, rate)
    order = np.argsort(np.array(times))
    key_frames = np.flatnonzero(np.array([key for _, _, key in packets])[order])
    # If a damaged file marks no key frame, decoding starts at the first frame.
    key_frames = key_frames if key_frames.size else np.zeros(1, np.int64)
    return FrameIndex(len(packets), np.array(times)[order], key_frames, time_base, rate)


@contextmanager
def open_container(path: str) -> Iterator[av.container.InputContainer]:
    """Open a video with PyAV.

    Raises:
        VideoDecodeError: the path names a video inside a file that does not hold it, or that is damaged.
        av.FFmpegError, OSError, ValueError: it is not a video, or cannot be read.
    """
    if member_of(path) is None:  # FFmpeg reads files faster by itself
        with av.open(path) as container:
            yield container
        return
    with open_video_file(path) as file, av.open(file) as container:
        yield container


@lru_cache(maxsize=_INDEX_CACHE_SIZE)
def _images(folder: str) -> list[str]:
    return frames_in(Path(folder))


def count_frames(path: str) -> int:
    """Number of frames of a file. Raises `VideoDecodeError`, as `index_frames` does."""
    return index_frames(path).count


def frames_of_segment(path: str, segment: Segment | None) -> range:
    """The frames of a file, or of a part of it. Raises `VideoDecodeError`, also if the part holds no frame."""
    index = index_frames(path)
    if segment is None:
        return range(index.count)
    shown = _positions(path, index, None, segment)
    return range(int(shown[0]), int(shown[-1]) + 1)


def resampled_frames(path: str, fps: float, segment: Segment | None) -> np.ndarray:
    """Positions of the frames that a file, or a part of it, shows at evenly spaced moments, `fps` a second.

    Raises:
        VideoDecodeError: it cannot be read, has neither timestamps nor a frame rate, or has no frame in the segment.
    """
    return _positions(path, index_frames(path), fps, segment)


def _positions(path: str, index: FrameIndex, rate: float | None, segment: Segment | None) -> np.ndarray:
    try:
        return index.positions(rate, segment)
    except ValueError as error:
        raise VideoDecodeError(path, str(error)) from error


def decode(path: str, indices: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode the frames at `indices`, in that order. Indices may repeat.

    Decoding starts at the last key frame before the first needed frame. Where it saves work, it skips ahead to a later
    key frame. A rotation stored in the file is applied.

    Args:
        path: a video file that FFmpeg reads, or a folder of images.
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


def stream_frames(
    path: str, size: FrameSize, rate: float | None = None, segment: Segment | None = None
) -> Iterator[np.ndarray]:
    """Yield all frames of a video, or of a part of it, in order, with only a few in memory at a time.

    Args:
        path: a video file that FFmpeg reads, or a folder of images.
        size: (height, width) in pixels; or the maximum length of the shorter side, to which larger videos are shrunk.
        rate: frames per second to resample to; `None` keeps every frame.
        segment: the part of the video; all of it when `None`.

    Yields:
        (height, width, 3) uint8, RGB, upright.

    Raises:
        VideoDecodeError: the file cannot be decoded, `rate` or `segment` is given and the file has neither timestamps
            nor a frame rate, or there is no frame in the segment.
    """
    index = index_frames(path)
    wanted = _positions(path, index, rate, segment)
    repeats = dict(zip(*np.unique(wanted, return_counts=True), strict=True))
    for position, frame in _decoded(path, index, np.unique(wanted), _Converter(size)):
        yield from [frame] * repeats[position]


def _decoded(
    path: str, index: FrameIndex, wanted: np.ndarray, convert: "_Converter"
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (position, pixels) for every wanted position."""
    if Path(path).is_dir():
        for position in wanted.tolist():
            yield position, convert(_read_image(path, _images(path)[position]))
        return
    try:
        with open_container(path) as container:
            stream = _video_stream(container)
            # Several videos are already decoded in parallel, so more threads for each would only compete.
            stream.codec_context.thread_count = 1
            find_frames = _by_counting if index.timestamps is None else _by_seeking
            for position, frame in find_frames(container, stream, index, wanted):
                yield position, convert(frame)
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise VideoDecodeError(path, _one_line(error)) from error


def _read_image(folder: str, name: str) -> av.VideoFrame:
    from PIL import Image

    try:
        with Image.open(Path(folder) / name) as image:
            return av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise VideoDecodeError(folder, f"{name}: {_one_line(error)}") from error


def _video_stream(container: av.container.InputContainer) -> VideoStream:
    if not container.streams.video:
        raise ValueError("contains no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError("uses a codec that FFmpeg does not support")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > _MAX_PIXELS:
        raise ValueError(f"claims frames of {width} x {height} pixels; at most {_MAX_PIXELS:,} pixels are accepted")
    return stream


def _by_seeking(
    container: av.container.InputContainer, stream: VideoStream, index: FrameIndex, wanted: np.ndarray
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (position, frame) for every wanted position. Finds frames by timestamp and seeks where that saves work."""
    timestamps = index.timestamps
    assert timestamps is not None
    # The last frames are always decoded, because the last one replaces frames that are listed but missing.
    kept = {*timestamps[wanted].tolist(), *timestamps[-_MISSING_FRAMES_TOLERATED:].tolist()}
    for segment in _segments(wanted, index.key_frames):
        container.seek(int(timestamps[segment[0]]), stream=stream)
        due, frame = deque(segment), None
        for frame in _frames_of(container, stream, kept):
            # A frame that the decoder dropped is replaced by the next one.
            while due and frame.pts is not None and frame.pts >= timestamps[due[0]]:
                yield due.popleft(), frame
            if not due:
                break
        if due:
            last_position = -1 if frame is None else int(np.searchsorted(timestamps, frame.pts))
            yield from _missing_at_the_end(due, last_position, frame, index)


def _frames_of(container: av.container.InputContainer, stream: VideoStream, kept: set[int]) -> Iterator[av.VideoFrame]:
    """Yield the following frames. Frames not in `kept` are skipped if no other frame depends on them."""
    for packet in container.demux(stream):
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in kept else "NONREF"
        yield from packet.decode()


def _by_counting(
    container: av.container.InputContainer, stream: VideoStream, index: FrameIndex, wanted: np.ndarray
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (position, frame) for every wanted position. Decodes from the start and counts frames."""
    due, position, frame = deque(wanted.tolist()), -1, None
    for position, frame in enumerate(container.decode(stream)):
        if position == due[0]:
            yield due.popleft(), frame
            if not due:
                return
    yield from _missing_at_the_end(due, position, frame, index)


def _missing_at_the_end(
    positions: Iterable[int], last_position: int, last: av.VideoFrame | None, index: FrameIndex
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Repeat the last decoded frame for a few positions that are listed but missing; raise an error for many."""
    for position in positions:
        if last is None or position - last_position > _MISSING_FRAMES_TOLERATED:
            raise ValueError(f"decoding ends after {last_position + 1} of {index.count} frames")
        yield position, last


def _segments(wanted: np.ndarray, key_frames: np.ndarray) -> list[list[int]]:
    """Split sorted positions wherever seeking to a later key frame is cheaper than decoding on."""
    segments: list[list[int]] = []
    for position in wanted.tolist():
        key_frame = key_frames[max(0, np.searchsorted(key_frames, position, side="right") - 1)]
        if segments and key_frame - segments[-1][-1] <= _FRAMES_WORTH_A_SEEK:
            segments[-1].append(position)
        else:
            segments.append([position])
    return segments


class _Converter:
    """Converts decoded frames to upright RGB arrays.

    Args:
        size: (height, width) in pixels, the maximum length of the shorter side, or `None` for the video's size.
    """

    def __init__(self, size: FrameSize | None):
        self.size = size
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        quarter_turns = round(frame.rotation / 90) % 4
        if isinstance(self.size, int):
            # The first frame determines the size of all frames.
            scale = min(1.0, self.size / min(frame.height, frame.width))
            shown = (frame.width, frame.height) if quarter_turns % 2 else (frame.height, frame.width)
            self.size = max(1, round(shown[0] * scale)), max(1, round(shown[1] * scale))
        height, width = self.size or (None, None)
        if quarter_turns % 2:
            height, width = width, height
        # FFmpeg is about 50% slower for an odd width, so one column is added here and removed below.
        even = width and width + width % 2
        rgb = self.reformatter.reformat(frame, width=even, height=height, format="rgb24", interpolation="AREA")
        return np.rot90(rgb.to_ndarray()[:, :width], quarter_turns)


def _one_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, av.FFmpegError) else str(error)
    return " ".join((reason or "").split()) or type(error).__name__
