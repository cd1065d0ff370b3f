"""tf.data from video files to uint8 windows: the host's only work. Views and normalisation happen on the device."""

import atexit
import threading
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from hdc_keras.data.loading import PREFETCH_BATCHES, WindowLoader


def windows_dataset(loader: WindowLoader, start_step: int = 0, workers: int | None = None) -> tf.data.Dataset:
    """Endless batches of window pairs, in an order that depends on the loader's seed and the step alone.

    Args:
        loader: loads the windows.
        start_step: first batch to give, to continue an interrupted run.
        workers: videos decoded at once; chosen by tf.data when `None`.

    Returns:
        A dataset of (batch_size, 2, time, height, width, 3) uint8: `[:, 0]` is the anchor window, `[:, 1]` the second.
    """
    dataset = tf.data.Dataset.range(start_step * loader.batch_size, np.iinfo(np.int64).max)
    dataset = dataset.map(
        _in_graph(loader.load, loader.shape),
        num_parallel_calls=workers or tf.data.AUTOTUNE,
        deterministic=True,
    )
    return dataset.batch(loader.batch_size, drop_remainder=True).prefetch(PREFETCH_BATCHES)


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
