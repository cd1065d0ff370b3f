"""Loads video records as uint8 clips, on any backend. `pipeline` provides the same batches through tf.data."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import keras
import numpy as np

from hdc_keras.data import tfio_decoding
from hdc_keras.data.decoding import decode, frames_of_segment, resampled_frames
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.sampling import (
    WindowSpec,
    count_steps,
    epoch_order,
    evenly_spaced_clips,
    sample_windows,
    video_keys,
)
from hdc_keras.data.shards import read_frames, resampled_count, resampled_positions
from hdc_keras.data.storage import parallel_reads
from hdc_keras.errors import DataError, VideoDecodeError

# Enough to hide one slow video; more would only use memory.
PREFETCH_BATCHES = 2


class DecodeFailures:
    """Collects videos that cannot be decoded, and ends reading with an error when there are too many.

    Args:
        total: number of videos in the set.
        max_share: maximum fraction of the videos that may fail, in [0, 1].

    Attributes:
        by_id: the error of each failed video, by its id.
        fatal: the error that ended reading, or `None`.
    """

    def __init__(self, total: int, max_share: float):
        self.total = total
        self.max_share = max_share
        self.by_id: dict[str, VideoDecodeError] = {}
        self.fatal: DataError | None = None
        self._lock = threading.Lock()

    @property
    def reasons(self) -> dict[str, str]:
        """Why videos could not be decoded, by path. Several videos may share one file."""
        with self._lock:
            return {error.path: error.cause for error in self.by_id.values()}

    def add(self, error: VideoDecodeError, video_id: str) -> None:
        """Record a video that cannot be decoded.

        Args:
            error: names the file and the cause.
            video_id: id of the video.

        Raises:
            DataError: more than `max_share` of the videos have failed.
        """
        with self._lock:
            if self.fatal:  # Videos are decoded in parallel: beyond the limit, all threads raise the same error.
                raise self.fatal
            # A copy without traceback, which would keep decoded frames in memory.
            self.by_id[video_id] = VideoDecodeError(error.path, error.cause)
            if len(self.by_id) > self.max_share * self.total:
                listed = "\n  ".join(dict.fromkeys(f"{one.path}: {one.cause}" for one in [*self.by_id.values()][:5]))
                self.fatal = DataError(
                    f"{len(self.by_id)} of {self.total} videos cannot be decoded, more than `data.max_failed_share` "
                    f"({self.max_share:g}) allows. The first ones:\n  {listed}\nRepair or remove them, or raise the "
                    "limit with --set data.max_failed_share=..."
                )
                raise self.fatal

    def end(self, error: DataError) -> DataError:
        """End reading with an error that no other video can replace. Returns the first of such errors, to be raised."""
        with self._lock:
            self.fatal = self.fatal or DataError(str(error))
            return self.fatal

    @contextmanager
    def named(self) -> Iterator[None]:
        """Context for reading from tf.data, whose errors hide those of Python: replaces them by `fatal`."""
        try:
            yield
        except Exception:
            if self.fatal:
                raise self.fatal from None
            raise


class FrameStore:
    """Reads frames of videos from their files or from a prepared set, and caches decoded videos in memory.

    Videos are cached on their first visit until the budget is used up; the others are decoded on every visit.

    Args:
        size: (height, width) of decoded frames in pixels.
        budget_gb: memory for cached frames, in 10^9 bytes.
        decoder: "pyav", or "tfio" for tensorflow-io. PyAV counts the frames in either case.
        fps: frames per second to resample every video to; `None` keeps its frames.

    Raises:
        ConfigError: the decoder is not available.
    """

    def __init__(self, size: tuple[int, int], budget_gb: float, decoder: str = "pyav", fps: float | None = None):
        if decoder == "tfio":
            tfio_decoding.require_tfio()
        self.size = size
        self.fps = fps
        self._decode_file = {"pyav": decode, "tfio": tfio_decoding.decode}[decoder]
        self._free_bytes = budget_gb * 1e9
        self._cached: dict[str, np.ndarray] = {}
        self._reserved: dict[str, int] = {}  # bytes
        self._lock = threading.Lock()

    def count(self, record: VideoRecord) -> int:
        """Number of frames of a video. Raises `VideoDecodeError`."""
        if record.stored:
            return resampled_count(record.stored, self.fps)
        if self.fps:
            return len(resampled_frames(record.path, self.fps, record.segment))
        return len(frames_of_segment(record.path, record.segment))

    def clips(self, record: VideoRecord, indices: np.ndarray) -> np.ndarray:
        """Frames at `indices`: `indices.shape + (height, width, 3)` uint8. Raises `VideoDecodeError`."""
        frames = self._cached.get(record.video_id)
        if frames is None and self._reserve(record):
            frames = self._decode_into_cache(record)
        return self._decode(record, indices) if frames is None else frames[indices]

    def _decode_into_cache(self, record: VideoRecord) -> np.ndarray:
        """Decode and cache a video for which memory was reserved; the memory is released if it cannot be decoded."""
        try:
            frames = self._decode(record, np.arange(self.count(record)))
        except VideoDecodeError:
            with self._lock:
                self._free_bytes += self._reserved.pop(record.video_id)
            raise
        self._cached[record.video_id] = frames
        return frames

    def _decode(self, record: VideoRecord, indices: np.ndarray) -> np.ndarray:
        if record.stored:
            return read_frames(record.stored, resampled_positions(record.stored, self.fps, indices), self.size)
        if self.fps:
            indices = resampled_frames(record.path, self.fps, record.segment)[indices]
        elif record.segment:
            indices = np.asarray(indices) + frames_of_segment(record.path, record.segment).start
        return self._decode_file(record.path, indices, self.size)

    def _reserve(self, record: VideoRecord) -> bool:
        """Reserve memory for a video. Returns whether enough was left and no other thread has reserved it."""
        needed_bytes = self.count(record) * self.size[0] * self.size[1] * 3
        with self._lock:
            if record.video_id in self._reserved or needed_bytes > self._free_bytes:
                return False
            self._free_bytes -= needed_bytes
            self._reserved[record.video_id] = needed_bytes
            return True


class WindowLoader:
    """Loads pairs of windows in an endless sequence that depends only on the seed.

    Every epoch consists of `len(records) // batch_size` batches from a new permutation, in which no video occurs
    twice. A video that cannot be decoded is recorded in `failures` and replaced by a video that is not in the batch, as
    long as there is one.

    Args:
        records: videos to draw from, at least `batch_size` of them.
        spec: how windows are drawn.
        store: decodes the windows.
        failures: collects videos that cannot be decoded.
        batch_size: videos per batch.
        seed: seed of the order and of the windows.
        labels: (videos,) integers to return with the windows; `None` for windows only.

    Raises:
        DataError: there are fewer videos than `batch_size`.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        spec: WindowSpec,
        store: FrameStore,
        failures: DecodeFailures,
        batch_size: int,
        seed: int,
        labels: np.ndarray | None = None,
    ):
        self.records = records
        self.spec = spec
        self.store = store
        self.failures = failures
        self.batch_size = batch_size
        self.seed = seed
        self.labels = labels
        self.steps_per_epoch = count_steps(len(records), batch_size)
        self.shape = (spec.windows, spec.frames, *store.size, 3)
        self._keys = video_keys(record.video_id for record in records)

    def load(self, position: int | np.int64) -> tuple[np.int64, np.ndarray]:
        """Load one video of the endless sequence.

        Args:
            position: place in the sequence; 0 is the first video of epoch 0.

        Returns:
            Row of the video in `records`, and its windows (windows, time, height, width, 3) uint8.

        Raises:
            DataError: too many videos cannot be decoded.
        """
        step, place = divmod(int(position), self.batch_size)
        epoch, order, first = self._locate(step)
        for row in self._candidates(order, first, place):
            record = self.records[row]
            try:
                if record.video_id not in self.failures.by_id:
                    count = np.array([self.store.count(record)])
                    windows = sample_windows(self.seed, epoch, self._keys[row : row + 1], count, self.spec)
                    return np.int64(row), self.store.clips(record, windows[0])
            except VideoDecodeError as error:
                self.failures.add(error, record.video_id)
        raise DataError("none of the videos can be decoded")

    def _candidates(self, order: np.ndarray, first: int, place: int) -> Iterator[int]:
        """The rows to try for a place of a batch, each once: its own, then rows outside the batch, then the batch.

        Outside the batch, every place first tries rows that no other place of the batch tries first, so two videos that
        fail do not get the same replacement. The first of them are about half an epoch away.
        """
        yield int(order[first + place])
        size = self.batch_size
        outside = np.roll(np.arange(first + size, first + len(order)), -((len(order) - size) // 2))
        others = [number for number in range(len(outside)) if number % size != place]
        batch = np.arange(first, first + size)
        for position in chain(outside[place::size], outside[others], np.roll(batch, -place)[1:]):
            yield int(order[position % len(order)])

    def plan(self, step: int | np.int64, frame_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The videos and frames of a batch, provided that every video can be decoded.

        Args:
            step: number of the batch; 0 is the first of epoch 0.
            frame_counts: (videos,) number of frames of each of `records`.

        Returns:
            (batch_size,) int64 rows of `records`, and (batch_size, windows, time) int64 frame indices.
        """
        epoch, order, first = self._locate(int(step))
        rows = order[first : first + self.batch_size]
        return rows, sample_windows(self.seed, epoch, self._keys[rows], frame_counts[rows], self.spec)

    def _locate(self, step: int) -> tuple[int, np.ndarray, int]:
        """The epoch of a batch, the order of videos in that epoch, and the position of the batch in that order."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, epoch_order(self.seed, epoch, len(self.records)), step_in_epoch * self.batch_size


class WaitClock:
    """Measures how long training waits for batches.

    Attributes:
        seconds: total waiting time so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._requested_at = 0.0

    def ask(self) -> None:
        """Called when training requests a batch."""
        self._requested_at = time.monotonic()

    def have(self) -> None:
        """Called when the requested batch is ready."""
        self.seconds += time.monotonic() - self._requested_at


class Share(NamedTuple):
    """Which part of every batch a process loads. Batches are divided into parts of equal size, one per
    device or process.

    Attributes:
        first: number of the first part that this process loads.
        held: number of consecutive parts that it loads.
        parts: total number of parts of a batch.
    """

    first: int = 0
    held: int = 1
    parts: int = 1

    def rows(self, batch_size: int) -> range:
        """Positions of this process's videos in a batch."""
        size = batch_size // self.parts
        return range(self.first * size, (self.first + self.held) * size)


class WindowBatches(keras.utils.PyDataset):
    """The batches of `pipeline.windows_dataset` without TensorFlow, for `fit` on JAX and PyTorch.

    Endless: pass `steps_per_epoch` to `fit`. Videos are decoded in threads, which run in parallel because the decoder
    releases the GIL. The next batches are made while the model trains on this one; Keras would do so only with several
    workers, which do not keep the order.

    Args:
        loader: loads the windows.
        start_step: number of the first batch, to resume an interrupted run.
        workers: number of videos decoded in parallel; one per core when `None`, and more if they are in a store.
        clock: measures how long training waits for each batch.
        share: the part of each batch to load, if several processes share a batch.

    Attributes:
        yields_uint8: tells `HDC.fit` that it need not look at the pixels of the first batch.
    """

    yields_uint8 = True

    def __init__(
        self,
        loader: WindowLoader,
        start_step: int = 0,
        workers: int | None = None,
        clock: WaitClock | None = None,
        share: Share = Share(),
    ):
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=PREFETCH_BATCHES)
        self.loader = loader
        self.start_step = start_step
        self.clock = clock or WaitClock()
        self.rows = share.rows(loader.batch_size)
        self._videos = ThreadPoolExecutor(workers or _parallel_videos(loader.records))
        # Two, so that the videos of the next batch are decoded while the slowest one of a batch is.
        self._batches = ThreadPoolExecutor(2)
        self._ahead: dict[int, Future[Any]] = {}

    @property
    def num_batches(self) -> None:
        """`None`: the number of batches is unlimited."""
        return None

    def __getitem__(self, step: int) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Part of batch `step`: (videos, windows, time, height, width, 3) uint8, and (videos,) labels, if any."""
        self.clock.ask()
        wanted = range(step, step + 1 + PREFETCH_BATCHES)
        for number in [number for number in self._ahead if number not in wanted]:
            self._ahead.pop(number).cancel()
        for number in wanted:
            if number not in self._ahead:
                self._ahead[number] = self._batches.submit(
                    _make_batch, self.loader, self.rows, self._videos, self.start_step + number
                )
        batch = self._ahead.pop(step).result()
        self.clock.have()
        return batch


def _make_batch(
    loader: WindowLoader, rows: range, threads: ThreadPoolExecutor, step: int
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Load a batch. A function, because a running method would keep its dataset, and with it its threads, alive."""
    first = step * loader.batch_size
    loaded = list(threads.map(loader.load, [first + row for row in rows]))
    windows = np.stack([clips for _, clips in loaded])
    return windows if loader.labels is None else (windows, loader.labels[[row for row, _ in loaded]])


def _parallel_videos(records: Sequence[VideoRecord]) -> int:
    """How many videos to read at the same time."""
    return max(
        (parallel_reads(record.stored.shard if record.stored else record.path) for record in records[:1]), default=1
    )


class ClipBatch(NamedTuple):
    """Evenly spaced clips of some videos.

    Attributes:
        asked: number of videos requested, including those that could not be decoded.
        records: the videos that were decoded.
        clips: (videos, clips, time, height, width, 3) uint8.
    """

    asked: int
    records: list[VideoRecord]
    clips: np.ndarray


def clip_batches(
    records: Sequence[VideoRecord],
    store: FrameStore,
    failures: DecodeFailures,
    *,
    clips: int,
    frames: int,
    stride: int,
    batch_size: int,
    workers: int | None = None,
) -> Iterator[ClipBatch]:
    """Yield evenly spaced clips of every video once, in order. Threads decode ahead of the consumer.

    Videos that cannot be decoded are recorded in `failures` and left out. The last batch may be smaller.

    Args:
        records: the videos.
        store: decodes them.
        failures: collects videos that cannot be decoded.
        clips: clips per video.
        frames: frames per clip.
        stride: source frames from one frame of a clip to the next.
        batch_size: videos per batch.
        workers: number of videos decoded in parallel; one per core when `None`, and more if they are in a store.

    Raises:
        DataError: too many videos cannot be decoded.
    """

    def load(record: VideoRecord) -> np.ndarray | None:
        try:
            return store.clips(record, evenly_spaced_clips(store.count(record), clips, frames, stride))
        except VideoDecodeError as error:
            failures.add(error, record.video_id)
            return None

    with ThreadPoolExecutor(workers or _parallel_videos(records)) as threads:
        pending = deque(threads.submit(load, record) for record in records[: PREFETCH_BATCHES * batch_size])
        for first in range(0, len(records), batch_size):
            batch = records[first : first + batch_size]
            following = records[first + PREFETCH_BATCHES * batch_size :][:batch_size]
            loaded = [pending.popleft().result() for _ in batch]
            pending.extend(threads.submit(load, record) for record in following)
            decoded = [(record, pixels) for record, pixels in zip(batch, loaded, strict=True) if pixels is not None]
            shape = (0, clips, frames, *store.size, 3)
            stacked = np.stack([pixels for _, pixels in decoded]) if decoded else np.zeros(shape, np.uint8)
            yield ClipBatch(len(batch), [record for record, _ in decoded], stacked)
