"""The batches that `fit` trains on: tf.data on TensorFlow, a `PyDataset` on JAX and PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import frame_store, host_policy, window_spec
from hdc_keras.data.loading import DecodeFailures, FrameStore, Share, WaitClock, WindowBatches, WindowLoader
from hdc_keras.data.records import VideoRecord
from hdc_keras.training.distribution import Distribution


@dataclass(frozen=True)
class TrainingVideos:
    """The training videos of an experiment, and the parts that turn them into windows.

    Attributes:
        records: videos of the split "train".
        store: decodes the videos.
        policy: `HostPolicy` of `views.host_policy`, or `None`.
        failures: collects the videos that cannot be decoded.
        loader: draws windows from the videos.
    """

    records: Sequence[VideoRecord]
    store: FrameStore
    policy: Any
    failures: DecodeFailures
    loader: WindowLoader

    @classmethod
    def of(cls, experiment: Experiment, records: Sequence[VideoRecord]) -> "TrainingVideos":
        """The training videos among all records.

        Raises:
            ConfigError: the decoder or a layer of `views.host_policy` is not available.
            DataError: there are too few training videos for a batch.
        """
        train = [record for record in records if record.split == "train"]
        store, policy = frame_store(experiment), host_policy(experiment)
        failures = DecodeFailures(len(train), experiment.data.max_failed_share)
        batch_size, seed = experiment.train.batch_size, experiment.seed
        loader = WindowLoader(train, window_spec(experiment), store, failures, batch_size, seed)
        return cls(train, store, policy, failures, loader)


class Batches:
    """Endless batches of windows, starting at any step.

    Args:
        loader: loads the windows.
        workers: number of videos decoded in parallel; chosen automatically when `None`.
        policy: `HostPolicy`, or `None`.
        distribution: the devices that share a batch.

    Attributes:
        waited: returns the seconds that training has waited for batches so far. `None` with several replicas of
            TensorFlow, which prefetches their batches itself.
    """

    def __init__(self, loader: WindowLoader, workers: int | None, policy: Any, distribution: Distribution):
        self.loader = loader
        self.workers = workers
        self.policy = policy
        self.distribution = distribution
        self.waited: Callable[[], float] | None = None
        self._clock: WaitClock | None = None
        if distribution.replica_count == 1:
            self._clock = clock = WaitClock()
            self.waited = lambda: clock.seconds

    def from_step(self, step: int) -> Any:
        """A dataset for `fit` whose first batch is that of `step`."""
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            # With oneDNN, this graph optimization fails on the training step and logs an error at each trace, although
            # the step runs either way.
            tf.config.optimizer.set_experimental_options({"remapping": False})
        return self.distribution.distribute(lambda share: self._share(step, share))

    def _share(self, step: int, share: Share) -> Any:
        if keras.backend.backend() != "tensorflow":
            return WindowBatches(self.loader, step, self.workers, self._clock, share)
        from hdc_keras.data.pipeline import windows_dataset

        return windows_dataset(self.loader, step, self.workers, self.policy, share, self._clock)
