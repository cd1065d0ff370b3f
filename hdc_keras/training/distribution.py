"""Which devices share a batch: one, all devices of this machine, or the devices of several machines."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras

from hdc_keras.config import TrainConfig
from hdc_keras.devices import list_devices, warning_of_slow_precision
from hdc_keras.errors import ConfigError
from hdc_keras.training.cluster import described_cluster


class Distribution:
    """The devices of a run. It hides from the rest of `training/` whether there is one device or many.

    TensorFlow runs one data-parallel replica of the step per device, under a `tf.distribute` strategy. JAX runs one
    program, whose arrays it shards over the devices. PyTorch uses one device.

    Args:
        train: the settings.

    Attributes:
        name: "one_device", "mirrored", "multi_worker", or, on JAX, "data_parallel".
        device_count: number of devices that share a batch, over all machines.
        is_chief: whether this process writes the run's files; exactly one process does.
        synchronises_batch_norm: whether the backbone's batch norm takes its statistics from the whole batch.
        notes: messages for the user.

    Raises:
        ConfigError: the settings do not work together, on this machine, or on the active backend.
    """

    def __init__(self, train: TrainConfig):
        self.notes: list[str] = []
        self.name: str = train.strategy
        self.is_chief = True
        self._strategy: Any = None
        self._any_process: Callable[[bool], bool] | None = None
        backend = keras.backend.backend()
        if backend == "tensorflow":
            self._choose_on_tensorflow(train)
        else:
            self._choose_elsewhere(train, backend)
        if train.batch_size % (self.device_count * train.micro_batches):
            raise ConfigError(
                f"`train.batch_size` ({train.batch_size}) cannot be split equally over {self.device_count} device(s) "
                f"with `train.micro_batches` {train.micro_batches}. Use a multiple of "
                f"{self.device_count * train.micro_batches}."
            )
        several = self.device_count > 1
        if backend == "jax" and several and train.batch_norm == "local":
            raise ConfigError(
                "`train.batch_norm`: over several devices, JAX always takes the statistics of the whole batch. Use "
                "`auto`."
            )
        self.synchronises_batch_norm = several and (train.batch_norm == "synchronised" or backend == "jax")
        if backend == "tensorflow" and self.synchronises_batch_norm and (train.jit == "on" or train.micro_batches > 1):
            raise ConfigError(
                "`train.batch_norm`: synchronised batch norm needs communication between devices inside the backbone, "
                "which TensorFlow supports neither under XLA nor in micro-batches. Use `auto`, or `train.jit: off` "
                "with `micro_batches: 1`."
            )
        slow = warning_of_slow_precision(train.precision)
        if slow:
            self.notes.append(slow)
        if several:
            videos = train.batch_size // self.device_count
            if self.synchronises_batch_norm:
                source = "the whole batch"
            elif train.batch_norm == "local":
                source = f"the {videos} videos of each device"
            else:
                source = f"the {videos} clips of each view on each device; positives are computed on other devices"
            self.notes.append(
                f"{self.device_count} devices share a batch ({self.name}). Negatives come from the whole batch; the "
                f"backbone's batch norm takes its statistics from {source}."
            )

    def _choose_on_tensorflow(self, train: TrainConfig) -> None:
        import tensorflow as tf

        cluster = described_cluster()
        if cluster == "torchrun" and train.strategy != "one_device":
            raise ConfigError(
                "`train.strategy`: torchrun started several processes, but TensorFlow's are described by TF_CONFIG or "
                "Slurm. Start them with srun, or set TF_CONFIG. `one_device` trains in each process by itself."
            )
        if self.name == "auto":
            gpus = 0 if cluster else len(tf.config.list_logical_devices("GPU"))
            self.name = "multi_worker" if cluster else "mirrored" if gpus > 1 else "one_device"
        if self.name == "multi_worker":
            if not cluster:
                raise ConfigError(
                    "`train.strategy`: multi_worker needs the addresses of the other processes. Set TF_CONFIG "
                    '({"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}), or start '
                    "with srun and several tasks."
                )
            # The cluster must be joined before TensorFlow initialises any device.
            self._strategy = _joined_cluster(cluster)
            self.is_chief = self._strategy.cluster_resolver.task_id == 0
            self._any_process = _any_process(self._strategy)
        elif self.name == "mirrored":
            kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
            self._strategy = tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices(kind)])
        self.device_count = self.replica_count

    def _choose_elsewhere(self, train: TrainConfig, backend: str) -> None:
        if train.strategy == "multi_worker" or (train.strategy == "mirrored" and backend == "torch"):
            raise ConfigError(
                f"`train.strategy`: {train.strategy} needs KERAS_BACKEND=tensorflow. "
                + (
                    "JAX splits a batch over the devices of one machine."
                    if backend == "jax"
                    else "PyTorch uses one device."
                )
            )
        cluster = described_cluster()
        if cluster and train.strategy != "one_device":
            started = {"slurm": "srun started several tasks", "torchrun": "torchrun started several processes"}
            raise ConfigError(
                f"`train.strategy`: {started.get(cluster, 'TF_CONFIG describes several processes')}, but on "
                f"{'JAX' if backend == 'jax' else 'PyTorch'} processes cannot train together yet: each would train the "
                "whole run. Start one process, or use KERAS_BACKEND=tensorflow. `one_device` trains in each process by "
                "itself, which needs a run directory of its own."
            )
        found = len(list_devices())
        self.device_count = found if backend == "jax" and train.strategy != "one_device" else 1
        self.name = "data_parallel" if self.device_count > 1 else "one_device"
        if backend == "torch" and found > 1:
            self.notes.append(
                f"PyTorch trains on one of the {found} GPUs of this machine. KERAS_BACKEND=tensorflow or jax use all."
            )

    @property
    def replica_count(self) -> int:
        """Data-parallel replicas of the TensorFlow strategy; 1 without a strategy, as on JAX and PyTorch.

        Each replica is fed its own part of a batch. Without a strategy, `fit` is fed whole batches.
        """
        return self._strategy.num_replicas_in_sync if self._strategy else 1

    @property
    def is_multi_process(self) -> bool:
        """Whether several processes train together."""
        return self._any_process is not None

    @contextmanager
    def activate(self) -> Iterator[None]:
        """A context in which JAX shards arrays over the devices. Do everything that uses the model inside it."""
        if self.name != "data_parallel":
            yield
            return
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=list_devices()))
        try:
            yield
        finally:
            keras.distribution.set_distribution(before)

    def scope(self) -> AbstractContextManager[Any]:
        """The strategy's scope on TensorFlow, in which the model is created, loaded and compiled.

        Do nothing else in it: the processes of a cluster create every variable of the scope together, so a process
        that creates one alone waits forever.
        """
        return self._strategy.scope() if self._strategy else nullcontext()

    def distribute(self, make_dataset: Callable[[int, int], Any]) -> Any:
        """Make the batches for `fit`. This process loads only the parts that its own replicas need.

        Args:
            make_dataset: called with the index of this process's first replica and the number of its replicas; returns
                a dataset of their parts of each batch.
        """
        if not self._strategy:
            return make_dataset(0, 1)

        def dataset_of_process(context: Any) -> Any:
            count = self.replica_count // context.num_input_pipelines
            return make_dataset(context.input_pipeline_id * count, count)

        return self._strategy.distribute_datasets_from_function(dataset_of_process)

    def repeat_batch(self, batch: Any, times: int) -> Any:
        """Make a dataset for `fit` that repeats one batch of `distribute`."""
        if keras.backend.backend() != "tensorflow":
            return _RepeatedBatch(batch, times)
        import tensorflow as tf

        if not self._strategy:
            return tf.data.Dataset.from_tensors(batch).repeat(times)
        parts = self._strategy.experimental_local_results(batch)
        return self._strategy.distribute_datasets_from_function(
            lambda context: tf.data.Dataset.from_tensor_slices(tf.stack(parts)).repeat()
        )

    def any_process(self, flag: bool) -> bool:
        """Whether `flag` is true in at least one process. All processes must call this after the same step."""
        return self._any_process(flag) if self._any_process else flag


class _RepeatedBatch(keras.utils.PyDataset):
    def __init__(self, batch: Any, times: int):
        super().__init__()
        self.batch = batch
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, number: int) -> Any:
        return self.batch


def synchronise_batch_norm(model: keras.Model) -> None:
    """Make every batch norm of a backbone take its statistics from the whole batch, over all replicas (TensorFlow)."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def _joined_cluster(kind: str) -> Any:
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver() if kind == "slurm" else None
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except RuntimeError as error:
        raise ConfigError(f"`train.strategy`: multi_worker cannot start: {error}") from error


def _any_process(strategy: Any) -> Callable[[bool], bool]:
    """Make the function behind `Distribution.any_process`, which sums the flag over all processes."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((), tf.int32)])
    def total(flag: Any) -> Any:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(flag,)), axis=None)

    return lambda flag: int(total(tf.constant(int(flag)))) > 0
