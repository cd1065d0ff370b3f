"""tf.data from video files or prepared shards to uint8 windows: the host's only work. Views happen on the device."""

import atexit
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from hdc_keras.data.host_policy import HostPolicy
from hdc_keras.data.loading import PREFETCH_BATCHES, WindowLoader
from hdc_keras.data.records import StoredVideo
from hdc_keras.data.shards import FRAMES

# Read at once from a shard: a video of a few seconds is a few of these.
_READ_BYTES = 1 << 18


class Share(NamedTuple):
    """Which of a batch's equal parts a machine loads: `held` of them from number `first` on, out of `parts`."""

    first: int = 0
    held: int = 1
    parts: int = 1

    def rows(self, batch_size: int) -> range:
        """Places in a batch."""
        size = batch_size // self.parts
        return range(self.first * size, (self.first + self.held) * size)


class WaitClock:
    """Adds up how long training has waited for batches."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._asked = 0.0

    def ask(self, number: np.int64) -> list[np.ndarray]:
        """A batch is asked for."""
        self._asked = time.monotonic()
        return [np.asarray(number)]

    def have(self, number: np.int64) -> list[np.ndarray]:
        """It is there."""
        self.seconds += time.monotonic() - self._asked
        return [np.asarray(number)]


def windows_dataset(
    loader: WindowLoader,
    start_step: int = 0,
    workers: int | None = None,
    policy: HostPolicy | None = None,
    share: Share | None = None,
    clock: WaitClock | None = None,
) -> tf.data.Dataset:
    """Endless batches of window pairs, in an order that depends on the loader's seed and the step alone.

    Args:
        loader: loads the windows.
        start_step: first batch to give, to continue an interrupted run.
        workers: videos decoded at once; chosen by tf.data when `None`.
        policy: applied to every clip. Its draws, unlike the order and the windows, are not repeated after a restart.
        share: the parts of each batch to load, where several devices or machines share it; the whole when `None`.
        clock: told how long each batch was waited for.

    Returns:
        A dataset of (batch_size, 2, time, height, width, 3) uint8: `[:, 0]` is the anchor window, `[:, 1]` the second;
        of pairs of such windows and (batch_size,) int64 where the loader has labels. Of a shared batch, each element is
        one part.
    """
    share = share or Share()
    rows = share.rows(loader.batch_size)
    stored = [record.stored for record in loader.records if record.stored]
    if len(stored) == len(loader.records):
        dataset = _from_shards(loader, stored, start_step, workers, rows)
    else:
        positions = tf.data.Dataset.range(start_step * len(rows), np.iinfo(np.int64).max)
        positions = positions.map(lambda i: i // len(rows) * loader.batch_size + rows.start + i % len(rows))
        load = _in_graph(lambda position: list(loader.load(position)), [((), tf.int64), (loader.shape, tf.uint8)])
        dataset = positions.map(load, _parallel(workers), deterministic=True)
    if policy:
        augment = lambda row, windows: (row, policy(windows))  # noqa: E731
        dataset = dataset.map(augment, _parallel(workers) if policy.is_parallel else None, deterministic=True)
    dataset = dataset.map(_with_label(loader))
    dataset = dataset.batch(loader.batch_size // share.parts, drop_remainder=True)
    dataset = dataset.prefetch(PREFETCH_BATCHES * share.held)
    if clock:
        dataset = _timed(dataset, clock)
    return dataset.with_options(_options())


def _with_label(loader: WindowLoader) -> Callable[[tf.Tensor, tf.Tensor], Any]:
    """(row, windows) to what is trained on."""
    if loader.labels is None:
        return lambda row, windows: windows
    labels = tf.constant(loader.labels, tf.int64)
    return lambda row, windows: (windows, labels[row])


def _timed(dataset: tf.data.Dataset, clock: WaitClock) -> tf.data.Dataset:
    """The same batches, with the time from asking for one to having it told to the clock."""
    ask, have = (_in_graph(note, [((), tf.int64)]) for note in (clock.ask, clock.have))

    def noted(number: tuple[tf.Tensor], batch: Any) -> Any:
        with tf.control_dependencies(have(number[0])):
            return tf.nest.map_structure(tf.identity, batch)

    return tf.data.Dataset.zip((tf.data.Dataset.counter().map(ask), dataset)).map(noted)


def _options() -> tf.data.Options:
    """All of tf.data's own settings."""
    options = tf.data.Options()
    # A run that is resumed gets the batches that it would have got.
    options.deterministic = True
    # How many videos are read at once follows the machine, unless `data.workers` says it.
    options.autotune.enabled = True
    # What follows the prefetching on purpose, the clock, must not be prefetched again.
    options.experimental_optimization.inject_prefetch = False
    # Videos are decoded side by side; an operation that spread over the cores would take them from the next video.
    options.threading.max_intra_op_parallelism = 1
    # Which host loads which videos of a batch is the loader's to say: tf.data would split by files or by elements, and
    # batches would then depend on the number of hosts.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def _parallel(workers: int | None) -> int:
    return workers or tf.data.AUTOTUNE


def _from_shards(
    loader: WindowLoader, stored: list[StoredVideo], start_step: int, workers: int | None, places: range
) -> tf.data.Dataset:
    """Rows and windows of prepared videos: Python names the frames of a batch, and the graph reads and decodes them."""
    shards = sorted({video.shard for video in stored})
    numbers = {shard: number for number, shard in enumerate(shards)}
    shard_of = np.array([numbers[video.shard] for video in stored])
    offset_of = np.array([video.offset for video in stored])
    frame_counts = np.array([video.frames for video in stored])

    def plan(step: np.int64) -> list[np.ndarray]:
        rows, windows = (planned[places.start : places.stop] for planned in loader.plan(step, frame_counts))
        return [rows, shard_of[rows], offset_of[rows], windows]

    batch, (windows, frames, height, width, _) = len(places), loader.shape
    planned = [*[((batch,), tf.int64)] * 3, ((batch, windows, frames), tf.int64)]
    dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max).map(_in_graph(plan, planned)).unbatch()
    names = tf.constant(shards)

    def read(row: tf.Tensor, shard: tf.Tensor, offset: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # The two windows of a short video overlap; what is in both is decoded once.
        needed, places = tf.unique(tf.reshape(indices, [-1]))
        jpegs = tf.gather(_jpegs_at(names[shard], offset), needed)
        pixels = tf.map_fn(lambda jpeg: tf.io.decode_jpeg(jpeg, channels=3), jpegs, fn_output_signature=tf.uint8)
        is_sized = tf.reduce_all(tf.shape(pixels)[1:3] == (height, width))
        sized = tf.cond(is_sized, lambda: pixels, lambda: _resized(pixels, (height, width)))
        return row, tf.ensure_shape(tf.reshape(tf.gather(sized, places), loader.shape), loader.shape)

    return dataset.map(read, _parallel(workers), deterministic=True)


def _jpegs_at(shard: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """The JPEGs of the video whose record begins at that byte: (frames,) strings.

    A data set of one record inside the graph: TensorFlow has no other operation that reads from the middle of a file.
    """
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=[shard], compression_type="", buffer_size=_READ_BYTES, byte_offsets=[offset]
    )
    records = tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string))
    _, lists = tf.io.parse_single_sequence_example(
        records.take(1).get_single_element(),
        sequence_features={FRAMES: tf.io.FixedLenSequenceFeature((), tf.string)},
    )
    return lists[FRAMES]


def _resized(pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    # Means over areas cost a fifth of the anti-aliased filters, and are as free of aliases.
    shrinks = tf.reduce_all(tf.shape(pixels)[1:3] >= size)
    resized = tf.cond(
        shrinks, lambda: tf.image.resize(pixels, size, "area"), lambda: tf.image.resize(pixels, size, "bilinear")
    )
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _in_graph(
    function: Callable[[np.int64], list[Any]], outputs: list[tuple[tuple[int, ...], tf.DType]]
) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """A Python function of a number as one of the graph; `outputs` are its results' shapes and types."""

    def guarded(number: np.int64) -> list[Any]:
        with _exit_guard:
            return function(number)

    def call(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        results = tf.numpy_function(guarded, [number], [dtype for _, dtype in outputs])
        return tuple(tf.ensure_shape(result, shape) for result, (shape, _) in zip(results, outputs, strict=True))

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
