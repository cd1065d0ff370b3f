"""Decodes videos in separate processes, which may hang or crash, and encodes their frames as JPEG."""

import io
import math
import multiprocessing
import tempfile
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import CancelledError, Future, TimeoutError
from contextlib import ExitStack
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from hdc_keras.data.decoding import FrameSize, Segment, index_frames, stream_frames
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.remote import local_copy
from hdc_keras.data.shards import EncodedVideo
from hdc_keras.errors import VideoDecodeError

# Limit on the address space of a decoding process, in bytes. Imports take about 1 GB; 8K video with 16 reference frames
# takes 2 GB.
_WORKER_MEMORY = 6_000_000_000
# Videos per process that are decoded ahead of the writers, which limits the memory for encoded frames.
_VIDEOS_AHEAD = 4


class Decoders:
    """Processes that decode videos for the writers of several shards at once, each in a thread.

    A writer gets its videos in order. While one of them hangs, its writer waits, but holds no more than its share of
    the videos that are decoded ahead; the other processes decode for the other writers.

    Args:
        processes: number of videos decoded in parallel.
        time_limit: seconds after which decoding a video is stopped and the video counts as failed.
        shards: number of shards that will be written.
    """

    def __init__(self, processes: int, time_limit: float, shards: int):
        from pebble import ProcessPool

        self.time_limit = time_limit
        self._processes = processes
        self._shards_left = shards
        self._pending: set[Future] = set()
        self._stopped = False
        self._lock = Lock()
        self._stack = ExitStack()
        # Copies of remote videos go to a folder that this process removes: a process that is killed cannot remove them.
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        # Spawned, because a fork of a process that has used TensorFlow may hang. None is started before it is needed.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(processes, initializer=_start_worker, initargs=[folder], context=context)

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._stack:
            if kind:
                with self._lock:
                    self._stopped = True
                for future in list(self._pending):
                    future.cancel()  # its writer gets a `CancelledError`
                self._pool.stop()
            else:
                self._pool.close()
            self._pool.join()

    def encode(
        self, videos: Iterable[VideoRecord], size: FrameSize, quality: int, fps: float | None
    ) -> Generator[tuple[VideoRecord, EncodedVideo | str], None, None]:
        """Yield the frames of each video of a shard, or the reason why it failed, in order.

        Args:
            videos: the videos, read as far ahead as videos are decoded ahead.
            size: as in `prepare`.
            quality: as in `prepare`.
            fps: as in `prepare`.

        Raises:
            CancelledError: the decoders were left with an exception.
        """
        waiting = iter(videos)
        pending: deque[tuple[VideoRecord, Future]] = deque()
        try:
            while True:
                while len(pending) < self._ahead() and (record := next(waiting, None)):
                    pending.append((record, self._schedule([record.path, size, quality, fps, record.segment])))
                if not pending:
                    return
                record, future = pending.popleft()
                outcome = self._outcome(future)
                yield record, outcome
        finally:
            for _, future in pending:  # the writer stopped early
                future.cancel()

    def shard_finished(self) -> None:
        """Take note that a shard is finished, here or by another process: the others may decode further ahead."""
        with self._lock:
            self._shards_left -= 1

    def _ahead(self) -> int:
        """Videos that a writer may have decoded ahead: its share of those for all processes."""
        return math.ceil(_VIDEOS_AHEAD * self._processes / max(1, min(self._processes, self._shards_left)))

    def _schedule(self, arguments: list[Any]) -> Future:
        with self._lock:
            if self._stopped:
                raise CancelledError
            future = self._pool.schedule(encode_video, args=arguments, timeout=self.time_limit)
            self._pending.add(future)
        return future

    def _outcome(self, future: Future) -> EncodedVideo | str:
        from pebble import ProcessExpired

        try:
            return future.result()
        except TimeoutError:
            return f"not decoded within {self.time_limit:g} seconds"
        except ProcessExpired as error:
            return f"its decoding process ended with exit code {error.exitcode}"
        finally:
            self._pending.discard(future)


def encode_video(
    path: str, size: FrameSize, quality: int, fps: float | None, segment: Segment | None = None
) -> EncodedVideo | str:
    """Decode a video and encode its frames as JPEG. Returns the reason, as a string, if that fails."""
    frames = []
    stored_size = (0, 0)
    try:
        with local_copy(path) as file:
            for pixels in stream_frames(file, size, fps, segment):
                buffer = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality)
                frames.append(buffer.getvalue())
                stored_size = pixels.shape[:2]
            rate = fps or index_frames(file).rate
    except VideoDecodeError as error:
        return error.cause
    except MemoryError:
        return "needs more memory than a decoding process is allowed"
    except Exception as error:  # Probably a bug in hdc-keras. Only this video fails, and the report shows the error.
        return f"unexpected error, {type(error).__name__}: {error}"
    return EncodedVideo(frames, stored_size, rate)


def _start_worker(temporary: str) -> None:
    tempfile.tempdir = temporary
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_MEMORY, hard_limit))
