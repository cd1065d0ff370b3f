"""tf.data pipelines from video files or prepared shards to uint8 windows. Views are made later, on the device."""

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hdc_keras.data.host_policy import HostPolicy
from hdc_keras.data.loading import PREFETCH_BATCHES, Share, WaitClock, WindowLoader
from hdc_keras.data.records import StoredVideo
from hdc_keras.data.remote import is_remote
from hdc_keras.data.shards import needed_jpegs, resampled_count, resampled_positions
from hdc_keras.data.storage import parallel_reads
from hdc_keras.errors import DataError, VideoDecodeError


def windows_dataset(
    loader: WindowLoader,
    start_step: int = 0,
    workers: int | None = None,
    policy: HostPolicy | None = None,
    share: Share | None = None,
    clock: WaitClock | None = None,
) -> tf.data.Dataset:
    """Endless batches of window pairs, in an order that depends only on the loader's seed and the step.

    Args:
        loader: loads the windows.
        start_step: number of the first batch, to resume an interrupted run.
        workers: number of videos decoded in parallel; chosen by tf.data when `None`.
        policy: applied to every clip. After a restart, its random draws differ; order and windows do not.
        share: the parts of each batch to load, if several devices or machines share a batch; `None` for all of it.
        clock: measures how long training waits for each batch.

    Returns:
        A dataset of (batch_size, 2, time, height, width, 3) uint8: `[:, 0]` is the anchor window, `[:, 1]` the second.
        If the loader has labels, each element is a pair of such windows and (batch_size,) int64 labels. If the batch is
        shared, each element is one part of it.
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
    """Map (row, windows) to windows, or to (windows, label) if the loader has labels."""
    if loader.labels is None:
        return lambda row, windows: windows
    labels = tf.constant(loader.labels, tf.int64)
    return lambda row, windows: (windows, labels[row])


def _timed(dataset: tf.data.Dataset, clock: WaitClock) -> tf.data.Dataset:
    """The same batches, with the clock measuring the time from requesting a batch to receiving it."""

    def passing_on(call: Callable[[], None]) -> Callable[[np.int64], list[np.ndarray]]:
        def run(number: np.int64) -> list[np.ndarray]:
            call()
            return [np.asarray(number)]

        return run

    ask, have = (_in_graph(passing_on(call), [((), tf.int64)]) for call in (clock.ask, clock.have))

    def received(number: tuple[tf.Tensor], batch: Any) -> Any:
        with tf.control_dependencies(have(number[0])):
            return tf.nest.map_structure(tf.identity, batch)

    return tf.data.Dataset.zip((tf.data.Dataset.counter().map(ask), dataset)).map(received)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # A resumed run must get the same batches as an uninterrupted one.
    options.deterministic = True
    # tf.data chooses how many videos to read in parallel, unless `data.workers` is set.
    options.autotune.enabled = True
    # The clock must stay the last stage. Followed by another prefetch, it would measure the prefetching thread.
    options.experimental_optimization.inject_prefetch = False
    # Videos are already decoded in parallel, so operations that use several cores would only compete.
    options.threading.max_intra_op_parallelism = 1
    # The loader decides which host loads which videos. tf.data would split by files or elements, and batches would then
    # depend on the number of hosts.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def _parallel(workers: int | None) -> int:
    return workers or tf.data.AUTOTUNE


def _from_shards(
    loader: WindowLoader, stored: list[StoredVideo], start_step: int, workers: int | None, places: range
) -> tf.data.Dataset:
    """(row, windows) of prepared videos. Python reads the needed frames; the graph decodes them."""
    fps = loader.store.fps
    try:
        frame_counts = np.array([resampled_count(video, fps) for video in stored])
    except VideoDecodeError as error:
        raise DataError(f"{error}. Leave `data.fps` empty, or prepare the set with --fps.") from error

    def plan(step: np.int64) -> list[np.ndarray]:
        return [planned[places.start : places.stop] for planned in loader.plan(int(step), frame_counts)]

    def fetch(row: np.int64, indices: np.ndarray) -> list[np.ndarray]:
        video = stored[row]
        try:
            # The two windows of a short video overlap; frames in both are read and decoded once.
            jpegs, positions = needed_jpegs(video, resampled_positions(video, fps, indices))
        except DataError as error:
            raise loader.failures.end(error) from error
        return [np.array([bytes(jpeg) for jpeg in jpegs], object), positions.ravel()]

    batch, (windows, frames, height, width, _) = len(places), loader.shape
    planned = [((batch,), tf.int64), ((batch, windows, frames), tf.int64)]
    dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max).map(_in_graph(plan, planned)).unbatch()
    fetched = _in_graph(fetch, [((None,), tf.string), ((windows * frames,), tf.int64)])

    def read(row: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        jpegs, positions = fetched(row, indices)
        pixels = tf.map_fn(lambda jpeg: tf.io.decode_jpeg(jpeg, channels=3), jpegs, fn_output_signature=tf.uint8)
        has_size = tf.reduce_all(tf.shape(pixels)[1:3] == (height, width))
        resized = tf.cond(has_size, lambda: pixels, lambda: _resized(pixels, (height, width)))
        return row, tf.ensure_shape(tf.reshape(tf.gather(resized, positions), loader.shape), loader.shape)

    # tf.data chooses as many as there are cores, at most, which is too few if each read waits for a network.
    if workers is None and is_remote(stored[0].shard):
        workers = parallel_reads(stored[0].shard)
    return dataset.map(read, _parallel(workers), deterministic=True)


def _resized(pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    # Area averaging prevents aliasing as well as the anti-aliased filters, at a fifth of their cost.
    is_smaller = tf.reduce_all(tf.shape(pixels)[1:3] >= size)
    resized = tf.cond(
        is_smaller, lambda: tf.image.resize(pixels, size, "area"), lambda: tf.image.resize(pixels, size, "bilinear")
    )
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _in_graph(
    function: Callable[..., list[Any]], outputs: Sequence[tuple[tuple[int | None, ...], tf.DType]]
) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Wrap a Python function of arrays as a graph function; `outputs` are the shapes and types of its results."""

    def guarded(*arguments: Any) -> list[Any]:
        with _exit_guard:
            return function(*arguments)

    def call(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
        results = tf.numpy_function(guarded, arguments, [dtype for _, dtype in outputs])
        return tuple(tf.ensure_shape(result, shape) for result, (shape, _) in zip(results, outputs, strict=True))

    return call


class _ExitGuard:
    """Lets Python exit while an iterator is alive.

    Without it, tf.data's threads wait for an interpreter that has shut down, and the process never ends. Once Python
    starts to exit, all calls raise immediately; the pipeline's buffers fill with errors and its threads become idle.
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
