"""From video records to uint8 clips on any backend; `pipeline` feeds the same to TensorFlow through tf.data."""

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import keras
import numpy as np

from hdc_keras.data import tfio_decoding
from hdc_keras.data.decoding import count_frames, decode
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.sampling import WindowSpec, epoch_order, evenly_spaced_clips, sample_windows, video_keys
from hdc_keras.data.shards import read_frames
from hdc_keras.errors import DataError, VideoDecodeError

# Enough that a slow video does not stall the step; more only takes memory.
PREFETCH_BATCHES = 2


class DecodeFailures:
    """Videos that could not be decoded, and the limit past which a run ends.

    Args:
        total: number of videos in the set.
        max_share: share of bad videos at which reading ends with an error, in [0, 1].
    """

    def __init__(self, total: int, max_share: float):
        self.total = total
        self.max_share = max_share
        self.reasons: dict[str, str] = {}
        self.fatal: DataError | None = None
        self._lock = threading.Lock()

    def add(self, error: VideoDecodeError) -> None:
        """Note one bad video.

        Raises:
            DataError: too many are bad.
        """
        with self._lock:
            if self.fatal:  # videos are decoded in parallel; the first error past the limit is the one to tell
                raise self.fatal
            self.reasons[error.path] = error.cause
            if len(self.reasons) > self.max_share * self.total:
                listed = "\n  ".join(f"{path}: {cause}" for path, cause in list(self.reasons.items())[:5])
                self.fatal = DataError(
                    f"{len(self.reasons)} of {self.total} videos cannot be decoded, more than `data.max_failed_share` "
                    f"({self.max_share:g}) allows. The first:\n  {listed}\nRepair or remove them, or raise the limit "
                    "with --set data.max_failed_share=..."
                )
                raise self.fatal

    @contextmanager
    def named(self) -> Iterator[None]:
        """Around reading: explains the errors that tf.data makes of `fatal` and of damaged shards."""
        try:
            yield
        except Exception as error:
            if self.fatal:
                raise self.fatal from None
            if type(error).__name__ == "DataLossError":  # TensorFlow's, which need not be installed
                raise DataError(
                    "a shard of the prepared set is damaged; `hdc-keras prepare --out FOLDER --verify` says which. "
                    f"TensorFlow says: {str(error).splitlines()[0].rpartition('} ')[2]}"
                ) from None
            raise


class FrameStore:
    """Frames of videos, from their files or from a prepared set; whole small videos are kept in memory, up to a budget.

    Small sets are visited for many epochs; keeping their frames saves decoding them again. Once the budget is spent,
    further videos are decoded at each visit.

    Args:
        size: (height, width) frames are decoded to.
        budget_gb: memory for kept frames, in 10^9 bytes.
        decoder: "pyav", or "tfio" for tensorflow-io. Frames are counted by PyAV in any case.

    Raises:
        ConfigError: the decoder cannot be used here.
    """

    def __init__(self, size: tuple[int, int], budget_gb: float, decoder: str = "pyav"):
        if decoder == "tfio":
            tfio_decoding.require_tfio()
        self.size = size
        self._decode_file = {"pyav": decode, "tfio": tfio_decoding.decode}[decoder]
        self._budget = budget_gb * 1e9
        self._kept: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def count(self, record: VideoRecord) -> int:
        """How many frames a video has. Raises `VideoDecodeError`."""
        return record.stored.frames if record.stored else count_frames(record.path)

    def clips(self, record: VideoRecord, indices: np.ndarray) -> np.ndarray:
        """Frames at `indices`: `indices.shape + (height, width, 3)` uint8. Raises `VideoDecodeError`."""
        kept = self._kept.get(record.video_id)
        if kept is None and self._reserve(self.count(record)):
            kept = self._kept[record.video_id] = self._decode(record, np.arange(self.count(record)))
        return self._decode(record, indices) if kept is None else kept[indices]

    def _decode(self, record: VideoRecord, indices: np.ndarray) -> np.ndarray:
        if record.stored:
            return read_frames(record.stored, indices, self.size)
        return self._decode_file(record.path, indices, self.size)

    def _reserve(self, frames: int) -> bool:
        needed = frames * self.size[0] * self.size[1] * 3
        with self._lock:
            if needed > self._budget:
                return False
            self._budget -= needed
            return True


class WindowLoader:
    """Window pairs in an endless order that depends on the seed alone.

    An epoch is `len(records) // batch_size` batches of a new permutation, so that no video is twice in a batch. A video
    that cannot be decoded is noted in `failures`, and another of the same epoch takes its place.

    Args:
        records: videos to draw from, at least `batch_size` of them.
        spec: how windows are drawn.
        store: decodes them.
        failures: notes bad videos.
        batch_size: videos per batch.
        seed: seed of order and windows.
        labels: (videos,) integers that are given along with the windows; `None` for windows alone.

    Raises:
        DataError: there are fewer videos than a batch holds.
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
        """What is at `position`, counted from the first of epoch 0.

        Returns:
            Row of the video in `records`, and its windows (windows, time, height, width, 3) uint8.

        Raises:
            DataError: too many videos are bad.
        """
        step, place = divmod(int(position), self.batch_size)
        epoch, order, first = self._locate(step)
        # A bad video's place is taken from half an epoch away, which is another batch.
        for attempt in range(len(order)):
            shifted = first + place + attempt * (len(order) // 2) + (attempt + 1) // 2
            row = int(order[shifted % len(order)])
            record = self.records[row]
            try:
                if record.path not in self.failures.reasons:
                    count = np.array([self.store.count(record)])
                    windows = sample_windows(self.seed, epoch, self._keys[row : row + 1], count, self.spec)
                    return np.int64(row), self.store.clips(record, windows[0])
            except VideoDecodeError as error:
                self.failures.add(error)
        raise DataError("no video of the set can be decoded")

    def plan(self, step: int | np.int64, frame_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What batch `step`, counted from the first of epoch 0, is made of, where every video can be read.

        Args:
            step: number of the batch.
            frame_counts: (videos,) frames of each of `records`.

        Returns:
            (batch_size,) int64 rows of `records`, and (batch_size, windows, time) int64 frames.
        """
        epoch, order, first = self._locate(int(step))
        rows = order[first : first + self.batch_size]
        return rows, sample_windows(self.seed, epoch, self._keys[rows], frame_counts[rows], self.spec)

    def _locate(self, step: int) -> tuple[int, np.ndarray, int]:
        """The epoch of a batch, that epoch's order, and the batch's first place in it."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, epoch_order(self.seed, epoch, len(self.records)), step_in_epoch * self.batch_size


class WindowBatches(keras.utils.PyDataset):
    """The batches of `pipeline.windows_dataset` without TensorFlow: for `fit` on JAX and PyTorch.

    Endless: give `fit` its `steps_per_epoch`. Videos are decoded by threads, which suffices: the decoder lets go of the
    interpreter's lock.

    Args:
        loader: loads the windows.
        start_step: first batch to give, to continue an interrupted run.
        workers: videos decoded at once; one a core when `None`.
    """

    def __init__(self, loader: WindowLoader, start_step: int = 0, workers: int | None = None):
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=PREFETCH_BATCHES)
        self.loader = loader
        self.start_step = start_step
        self._threads = ThreadPoolExecutor(workers or os.cpu_count())

    @property
    def num_batches(self) -> None:
        """There is no end."""
        return None

    def __getitem__(self, step: int) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Batch `step`: (batch_size, windows, time, height, width, 3) uint8, with labels (batch_size,) if there are."""
        first = (self.start_step + step) * self.loader.batch_size
        loaded = list(self._threads.map(self.loader.load, range(first, first + self.loader.batch_size)))
        windows = np.stack([clips for _, clips in loaded])
        return windows if self.loader.labels is None else (windows, self.loader.labels[[row for row, _ in loaded]])


def count_steps(videos: int, batch_size: int) -> int:
    """Batches per epoch. Raises `DataError` when there is not even one."""
    if videos < batch_size:
        raise DataError(
            f"{videos} videos to train on, but `train.batch_size` is {batch_size}. Contrast needs that many different "
            f"videos: lower it with --set train.batch_size={max(2, videos // 2)}, or add videos."
        )
    return videos // batch_size


class ClipBatch(NamedTuple):
    """Some videos as evenly spaced clips.

    Attributes:
        asked: how many videos were tried for it.
        records: those that decoded.
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
    """Every video once, in order; bad ones are noted in `failures` and left out, and the last batch is smaller.

    Threads decode ahead of the reader.

    Raises:
        DataError: too many videos are bad.
    """

    def load(record: VideoRecord) -> np.ndarray | None:
        try:
            return store.clips(record, evenly_spaced_clips(store.count(record), clips, frames, stride))
        except VideoDecodeError as error:
            failures.add(error)
            return None

    with ThreadPoolExecutor(workers or os.cpu_count()) as threads:
        ahead = deque(threads.submit(load, record) for record in records[: PREFETCH_BATCHES * batch_size])
        for first in range(0, len(records), batch_size):
            batch = records[first : first + batch_size]
            following = records[first + PREFETCH_BATCHES * batch_size :][:batch_size]
            loaded = [ahead.popleft().result() for _ in batch]
            ahead.extend(threads.submit(load, record) for record in following)
            good = [(record, pixels) for record, pixels in zip(batch, loaded, strict=True) if pixels is not None]
            shape = (0, clips, frames, *store.size, 3)
            stacked = np.stack([pixels for _, pixels in good]) if good else np.zeros(shape, np.uint8)
            yield ClipBatch(len(batch), [record for record, _ in good], stacked)
