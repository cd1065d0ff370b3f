"""Facts about the videos of a set, collected before training: lengths, sizes, codecs and decoding problems."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hdc_keras.data.decoding import decode, frames_of_segment, open_container
from hdc_keras.data.records import StoredVideo, VideoRecord
from hdc_keras.data.shards import read_frames
from hdc_keras.errors import VideoDecodeError


@dataclass(frozen=True)
class VideoFacts:
    """Facts about one video.

    Attributes:
        record: the video.
        frames: number of frames.
        rate: frames per second; 0 if unknown.
        size: (height, width) in pixels as shown, after a stored rotation.
        codec: FFmpeg's name for the codec.
        problem: why the video cannot be decoded; `None` if it can. If set, the numbers above are 0.
    """

    record: VideoRecord
    frames: int = 0
    rate: float = 0.0
    size: tuple[int, int] = (0, 0)
    codec: str = ""
    problem: str | None = None

    @property
    def seconds(self) -> float:
        """Duration in seconds; 0 if the frame rate is unknown."""
        return self.frames / self.rate if self.rate else 0.0


def inspect_video(record: VideoRecord) -> VideoFacts:
    """Count a video's frames, and decode the first and the middle one."""
    if record.stored:
        return _inspect_stored(record, record.stored)
    try:
        part = frames_of_segment(record.path, record.segment)
        frames = len(part)
        shown = decode(record.path, part.start + np.array([0, frames // 2]))
        if Path(record.path).is_dir():
            return VideoFacts(record, frames, 0.0, shown.shape[1:3], "images")
        with open_container(record.path) as container:
            stream = container.streams.video[0]
            return VideoFacts(
                record, frames, float(stream.average_rate or 0), shown.shape[1:3], stream.codec_context.name
            )
    except VideoDecodeError as error:
        return VideoFacts(record, problem=error.cause)


def _inspect_stored(record: VideoRecord, stored: StoredVideo) -> VideoFacts:
    try:
        shown = read_frames(stored, np.array([0, stored.frames // 2]))
        return VideoFacts(record, stored.frames, stored.rate, shown.shape[1:3], "jpeg")
    except VideoDecodeError as error:
        return VideoFacts(record, problem=str(error))


def inspect_videos(
    records: Sequence[VideoRecord], progress: Callable[[int, int], None], workers: int | None = None
) -> list[VideoFacts]:
    """Facts about every video, in order. `progress` is called with (videos done, total videos)."""
    facts = []
    with ThreadPoolExecutor(workers or os.cpu_count()) as threads:
        for done, found in enumerate(threads.map(inspect_video, records), 1):
            facts.append(found)
            progress(done, len(records))
    return facts


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    array = np.fromiter(values, float)
    return float(array.min()), float(np.median(array)), float(array.max())
