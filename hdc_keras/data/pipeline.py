"""tf.data from video records to uint8 clips: the host's only work. Views and normalisation happen on the device."""

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from hdc_keras.data.decoding import count_frames, decode
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.sampling import WindowSpec, epoch_order, evenly_spaced_clips, sample_windows
from hdc_keras.errors import DataError, VideoDecodeError

# Enough that a slow video does not stall the step; more only takes memory.
_PREFETCH_BATCHES = 2


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
        """Around reading a dataset: raises `fatal` in place of the error that tf.data made of it."""
        try:
            yield
        except tf.errors.OpError:
            if self.fatal:
                raise self.fatal from None
            raise


class FrameStore:
    """Decodes clips and keeps whole small videos in memory, up to a budget.

    Small sets are visited for many epochs; keeping their frames saves decoding them again. Once the budget is spent,
    further videos are decoded at each visit.

    Args:
        size: (height, width) frames are decoded to.
        budget_gb: memory for kept frames, in 10^9 bytes.
    """

    def __init__(self, size: tuple[int, int], budget_gb: float):
        self.size = size
        self._budget = budget_gb * 1e9
        self._kept: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def clips(self, path: str, indices: np.ndarray) -> np.ndarray:
        """Frames at `indices`: `indices.shape + (height, width, 3)` uint8. Raises `VideoDecodeError`."""
        kept = self._kept.get(path)
        if kept is None and self._reserve(count_frames(path)):
            kept = self._kept[path] = decode(path, np.arange(count_frames(path)), self.size)
        return decode(path, indices, self.size) if kept is None else kept[indices]

    def _reserve(self, frames: int) -> bool:
        needed = frames * self.size[0] * self.size[1] * 3
        with self._lock:
            if needed > self._budget:
                return False
            self._budget -= needed
            return True


def windows_dataset(
    records: Sequence[VideoRecord],
    spec: WindowSpec,
    store: FrameStore,
    failures: DecodeFailures,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int | None = None,
) -> tf.data.Dataset:
    """Endless batches of window pairs, in an order that depends on the seed and the step alone.

    An epoch is `len(records) // batch_size` batches of a new permutation, so that no video is twice in a batch. A video
    that cannot be decoded is noted in `failures`, and another of the same epoch takes its place.

    Args:
        records: videos to draw from, at least `batch_size` of them.
        spec: how windows are drawn.
        store: decodes them.
        failures: notes bad videos.
        batch_size: videos per batch.
        seed: seed of order and windows.
        start_step: first batch to give, to continue an interrupted run.
        workers: videos decoded at once; chosen by tf.data when `None`.

    Returns:
        A dataset of (batch_size, 2, time, height, width, 3) uint8: `[:, 0]` is the anchor window, `[:, 1]` the second.

    Raises:
        DataError: there are fewer videos than a batch holds.
    """
    steps_per_epoch = count_steps(len(records), batch_size)

    def load(position: np.int64) -> np.ndarray:
        step, place = divmod(int(position), batch_size)
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        order = epoch_order(seed, epoch, len(records))
        place += step_in_epoch * batch_size
        # A bad video's place is taken from half an epoch away, which is another batch.
        for attempt in range(len(records)):
            record = records[order[(place + attempt * (len(records) // 2) + (attempt + 1) // 2) % len(records)]]
            try:
                if record.path not in failures.reasons:
                    windows = sample_windows(seed, epoch, record.video_id, count_frames(record.path), spec)
                    return store.clips(record.path, windows)
            except VideoDecodeError as error:
                failures.add(error)
        raise DataError("no video of the set can be decoded")

    dataset = tf.data.Dataset.range(start_step * batch_size, np.iinfo(np.int64).max)
    dataset = dataset.map(
        _in_graph(load, (2, spec.frames, *store.size, 3)),
        num_parallel_calls=workers or tf.data.AUTOTUNE,
        deterministic=True,
    )
    return dataset.batch(batch_size, drop_remainder=True).prefetch(_PREFETCH_BATCHES)


def count_steps(videos: int, batch_size: int) -> int:
    """Batches per epoch. Raises `DataError` when there is not even one."""
    if videos < batch_size:
        raise DataError(
            f"{videos} videos to train on, but `train.batch_size` is {batch_size}. Contrast needs that many different "
            f"videos: lower it with --set train.batch_size={max(2, videos // 2)}, or add videos."
        )
    return videos // batch_size


def clips_dataset(
    records: Sequence[VideoRecord],
    store: FrameStore,
    failures: DecodeFailures,
    *,
    clips: int,
    frames: int,
    stride: int,
    batch_size: int,
    workers: int | None = None,
) -> tf.data.Dataset:
    """Every video once, in order, as evenly spaced clips; none is dropped, the last batch is smaller.

    Returns:
        A dataset of (position in `records` (batch,) int64, decoded (batch,) bool,
        clips (batch, clips, time, height, width, 3) uint8). A video that cannot be decoded comes as zeros with
        decoded False.
    """

    def load(position: np.int64) -> np.ndarray:
        path = records[int(position)].path
        try:
            return store.clips(path, evenly_spaced_clips(count_frames(path), clips, frames, stride))
        except VideoDecodeError as error:
            failures.add(error)
            return np.zeros((clips, frames, *store.size, 3), np.uint8)

    def mark(position: np.int64) -> np.bool_:
        return np.bool_(records[int(position)].path not in failures.reasons)

    load_in_graph = _in_graph(load, (clips, frames, *store.size, 3))

    def add_clips(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        loaded = load_in_graph(position)
        with tf.control_dependencies([loaded]):
            decoded = tf.numpy_function(mark, [position], tf.bool)
        return position, tf.ensure_shape(decoded, ()), loaded

    dataset = tf.data.Dataset.range(len(records))
    dataset = dataset.map(add_clips, num_parallel_calls=workers or tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size).prefetch(_PREFETCH_BATCHES)


def _in_graph(load: Callable[[np.int64], np.ndarray], shape: tuple[int, ...]) -> Callable[[tf.Tensor], tf.Tensor]:
    def guarded(position: np.int64) -> np.ndarray:
        with _exit_guard:
            return load(position)

    def call(position: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(guarded, [position], tf.uint8), shape)

    return call


class _ExitGuard:
    """Lets Python exit while an iterator is alive.

    tf.data's threads would otherwise wait for an interpreter that is gone, and the process would never end. From
    exit on, calls are refused at once; the pipeline's buffers fill with refusals, and its threads come to rest.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running = 0
        self._closing = False
        self._last_call = 0.0
        atexit.register(self._close)

    def __enter__(self) -> None:
        with self._condition:
            self._last_call = time.monotonic()
            if self._closing:
                raise RuntimeError("Python is exiting")
            self._running += 1

    def __exit__(self, *exception: object) -> None:
        with self._condition:
            self._running -= 1
            self._condition.notify_all()

    def _close(self, quiet_s: float = 0.1, longest_s: float = 10.0) -> None:
        until = time.monotonic() + longest_s
        with self._condition:
            self._closing = True
            self._condition.wait_for(lambda: self._running == 0, timeout=longest_s)
        while time.monotonic() < min(until, self._last_call + quiet_s):
            time.sleep(quiet_s / 4)


_exit_guard = _ExitGuard()
