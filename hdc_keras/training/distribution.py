"""Which devices share a batch: one, all of this machine, or those of several machines."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras

from hdc_keras.config import TrainConfig
from hdc_keras.devices import list_devices
from hdc_keras.errors import ConfigError


class Distribution:
    """The devices of a run, and what differs between one of them and many.

    Args:
        train: the settings.

    Attributes:
        name: "one_device", "mirrored", "multi_worker", or, on JAX, "data_parallel".
        device_count: number of devices that share a batch, over all machines.
        is_chief: whether this process writes the run's files; one of several does.
        synchronises: whether batch norm takes its statistics over all devices.
        notes: what a user should know.

    Raises:
        ConfigError: the setting and this machine or backend do not fit together.
    """

    def __init__(self, train: TrainConfig):
        self.notes: list[str] = []
        self.name: str = train.strategy
        self.is_chief = True
        self._strategy: Any = None
        self._agree: Callable[[bool], bool] | None = None
        backend = keras.backend.backend()
        if backend == "tensorflow":
            self._choose_on_tensorflow(train)
        else:
            self._choose_elsewhere(train, backend)
        if train.batch_size % (self.device_count * train.micro_batches):
            raise ConfigError(
                f"`train.batch_size` is {train.batch_size}, which {self.device_count} device(s) with "
                f"`train.micro_batches` {train.micro_batches} cannot share equally. Use a multiple of "
                f"{self.device_count * train.micro_batches}."
            )
        several = self.device_count > 1
        if backend == "jax" and several and train.batch_norm == "local":
            raise ConfigError(
                "`train.batch_norm`: over several devices, JAX takes statistics of the whole batch: use `synchronised`."
            )
        self.synchronises = several and (train.batch_norm == "synchronised" or backend == "jax")
        if backend == "tensorflow" and self.synchronises and (train.jit == "on" or train.micro_batches > 1):
            raise ConfigError(
                "`train.batch_norm`: synchronised batch norm talks between devices inside the backbone, which neither "
                "XLA nor micro-batches allow on TensorFlow. Use `local`, or `train.jit: off` with `micro_batches: 1`."
            )
        if several:
            shared = (
                "the whole batch"
                if self.synchronises
                else f"the {train.batch_size // self.device_count} videos of each"
            )
            self.notes.append(
                f"{self.device_count} devices share a batch ({self.name}); negatives come from the whole batch, and "
                f"batch norm's statistics in the backbone from {shared}"
            )

    def _choose_on_tensorflow(self, train: TrainConfig) -> None:
        import tensorflow as tf

        cluster = _cluster()
        if self.name == "auto":
            gpus = 0 if cluster else len(tf.config.list_logical_devices("GPU"))
            self.name = "multi_worker" if cluster else "mirrored" if gpus > 1 else "one_device"
        if self.name == "multi_worker":
            if not cluster:
                raise ConfigError(
                    "`train.strategy`: multi_worker needs to know the other processes: set TF_CONFIG "
                    '({"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}), or start '
                    "with srun and several tasks."
                )
            # Its connections must be made before TensorFlow touches any device.
            self._strategy = _joined_cluster(cluster)
            self.is_chief = self._strategy.cluster_resolver.task_id == 0
            self._agree = _agreement(self._strategy)
        elif self.name == "mirrored":
            kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
            self._strategy = tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices(kind)])
        self.device_count = self._strategy.num_replicas_in_sync if self._strategy else 1

    def _choose_elsewhere(self, train: TrainConfig, backend: str) -> None:
        if train.strategy == "multi_worker" or (train.strategy == "mirrored" and backend == "torch"):
            raise ConfigError(
                f"`train.strategy`: {train.strategy} needs KERAS_BACKEND=tensorflow; "
                + (
                    "JAX shares a batch over the devices of one machine."
                    if backend == "jax"
                    else "PyTorch uses one device."
                )
            )
        seen = len(list_devices())
        self.device_count = seen if backend == "jax" and train.strategy != "one_device" else 1
        self.name = "data_parallel" if self.device_count > 1 else "one_device"
        if backend == "torch" and seen > 1:
            self.notes.append(
                f"PyTorch trains on one of the {seen} GPUs here; KERAS_BACKEND=tensorflow or jax would use all"
            )

    @property
    def batch_parts(self) -> int:
        """Parts in which a batch is delivered: one for each TensorFlow replica; JAX shards a whole batch itself."""
        return self._strategy.num_replicas_in_sync if self._strategy else 1

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Around everything: JAX spreads arrays over the devices from here on."""
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
        """Where the model is made, loaded and compiled, on TensorFlow.

        Nothing else belongs here: the processes of a cluster agree on every variable that is made in it, and wait for
        those who make none.
        """
        return self._strategy.scope() if self._strategy else nullcontext()

    def distribute(self, make: Callable[[int, int], Any]) -> Any:
        """`make(first, count)` datasets of this machine's parts of each batch, as `fit` takes them."""
        if not self._strategy:
            return make(0, 1)
        inputs = self._strategy.num_replicas_in_sync

        def of_machine(context: Any) -> Any:
            count = inputs // context.num_input_pipelines
            return make(context.input_pipeline_id * count, count)

        return self._strategy.distribute_datasets_from_function(of_machine)

    def repeated(self, batch: Any, times: int) -> Any:
        """The same batch, `times` times, as `fit` takes it."""
        if keras.backend.backend() != "tensorflow":
            return _Repeated(batch, times)
        import tensorflow as tf

        if not self._strategy:
            return tf.data.Dataset.from_tensors(batch).repeat(times)
        parts = self._strategy.experimental_local_results(batch)

        def same(context: Any) -> Any:
            return tf.data.Dataset.from_tensor_slices(tf.stack(parts)).repeat()

        return self._strategy.distribute_datasets_from_function(same)

    def anywhere(self, happened: bool) -> bool:
        """Whether it happened to any of the processes, which must all ask at the same step."""
        return self._agree(happened) if self._agree else happened

    @property
    def is_multi_process(self) -> bool:
        """Whether several processes train together."""
        return self._agree is not None


class _Repeated(keras.utils.PyDataset):
    def __init__(self, batch: Any, times: int):
        super().__init__()
        self.batch = batch
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, number: int) -> Any:
        return self.batch


def synchronise_batch_norm(model: keras.Model) -> None:
    """Have every batch norm of a backbone take its statistics over all devices (TensorFlow)."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def is_multi_process() -> bool:
    """Whether the environment says that this process is one of several that train together."""
    return bool(_cluster())


def _cluster() -> str:
    """What describes the cluster: "TF_CONFIG", "slurm", or nothing."""
    try:
        workers = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    except ValueError as error:
        raise ConfigError(f"TF_CONFIG is not valid JSON: {error}") from error
    if sum(len(hosts) for hosts in workers.values()) > 1:
        return "TF_CONFIG"
    # Set for each task that srun starts; a batch script that starts Python itself has the first alone.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and "SLURM_PROCID" in os.environ:
        return "slurm"
    return ""


def _joined_cluster(kind: str) -> Any:
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver() if kind == "slurm" else None
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except RuntimeError as error:
        raise ConfigError(f"`train.strategy`: multi_worker cannot start: {error}") from error


def _agreement(strategy: Any) -> Callable[[bool], bool]:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((), tf.int32)])
    def total(flag: Any) -> Any:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(flag,)), axis=None)

    return lambda happened: int(total(tf.constant(int(happened)))) > 0
