"""What `fit` is fed with: tf.data on TensorFlow, a `PyDataset` on JAX and PyTorch."""

from collections.abc import Callable
from typing import Any

import keras

from hdc_keras.data.loading import WindowBatches, WindowLoader
from hdc_keras.training.distribution import Distribution


class Batches:
    """Endless batches of windows from any step on.

    Attributes:
        waited: returns the seconds that training has waited for batches so far. `None` where that is not measured: with
            several devices, which prefetch by themselves, and without tf.data.

    Args:
        loader: loads the windows.
        workers: number of videos decoded in parallel.
        policy: host policy, or `None`.
        distribution: the devices that share a batch.
    """

    def __init__(self, loader: WindowLoader, workers: int | None, policy: Any, distribution: Distribution):
        self.loader = loader
        self.workers = workers
        self.policy = policy
        self.distribution = distribution
        self.waited: Callable[[], float] | None = None
        self._clock: Any = None
        if keras.backend.backend() == "tensorflow" and distribution.batch_parts == 1:
            from hdc_keras.data.pipeline import WaitClock

            self._clock = WaitClock()
            self.waited = lambda: self._clock.seconds

    def from_step(self, step: int) -> Any:
        """Batches from `step` on, as `fit` takes them."""
        if keras.backend.backend() != "tensorflow":
            return WindowBatches(self.loader, step, self.workers)
        import tensorflow as tf

        from hdc_keras.data.pipeline import Share, windows_dataset

        # With oneDNN, this graph optimization fails on the training step and logs an error for each trace. The step
        # runs either way.
        tf.config.optimizer.set_experimental_options({"remapping": False})

        def make(first: int, count: int) -> Any:
            share = Share(first, count, self.distribution.batch_parts)
            return windows_dataset(self.loader, step, self.workers, self.policy, share, self._clock)

        return self.distribution.distribute(make)
