"""Which devices share a batch: one, all devices of this machine, or the devices of several machines."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import keras

from hdc_keras.config import TrainConfig
from hdc_keras.data.loading import Share
from hdc_keras.devices import list_devices, warning_of_slow_precision
from hdc_keras.errors import ConfigError
from hdc_keras.training.cluster import STARTED_BY, UNDERSTOOD, described_cluster, slurm_address

_HOW_TO_START = {
    "tensorflow": "processes of TensorFlow are described by TF_CONFIG or started by srun with several tasks.",
    "jax": "processes of JAX are described by KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID, or "
    "started by srun with several tasks.",
    "torch": "processes of PyTorch are started by torchrun, or by srun with several tasks.",
}
# How long the processes of PyTorch wait for each other, such as for one that decodes or saves on a slow disk.
_PATIENCE = timedelta(hours=2)


class Distribution:
    """The devices of a run. It hides from the rest of `training/` whether there is one device or many.

    TensorFlow runs one data-parallel replica of the step per device, under a `tf.distribute` strategy. JAX runs one
    program, whose arrays it shards over the devices of all processes. PyTorch uses one device in each process.

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
        self._share = Share()
        backend = keras.backend.backend()
        {"tensorflow": self._choose_on_tensorflow, "jax": self._choose_on_jax, "torch": self._choose_on_torch}[backend](
            train
        )
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
                source = (
                    f"the {videos} clips of each view on each device; without a queue, positives are computed on other "
                    "devices"
                )
            self.notes.append(
                f"{self.device_count} devices share a batch ({self.name}). Losses are those of the whole batch; the "
                f"backbone's batch norm takes its statistics from {source}."
            )

    def _choose_on_tensorflow(self, train: TrainConfig) -> None:
        import tensorflow as tf

        cluster = self._cluster(train)
        if self.name == "auto":
            gpus = 0 if cluster else len(tf.config.list_logical_devices("GPU"))
            self.name = "multi_worker" if cluster else "mirrored" if gpus > 1 else "one_device"
        if self.name == "multi_worker":
            # The cluster must be joined before TensorFlow initialises any device.
            self._strategy = _joined_cluster(cluster)
            self.is_chief = self._strategy.cluster_resolver.task_id == 0
            self._any_process = _any_process(self._strategy)
        elif self.name == "mirrored":
            kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
            self._strategy = tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices(kind)])
        self.device_count = self.replica_count

    def _choose_on_jax(self, train: TrainConfig) -> None:
        cluster = self._cluster(train)
        if cluster:
            count, rank = _joined_jax_processes()
            self.is_chief, self._any_process = rank == 0, _any_jax_process
            self._share = Share(rank, 1, count)
        self.device_count = len(list_devices()) if train.strategy != "one_device" else 1
        self.name = "multi_worker" if cluster else "data_parallel" if self.device_count > 1 else "one_device"

    def _choose_on_torch(self, train: TrainConfig) -> None:
        if train.strategy == "mirrored":
            raise ConfigError(
                "`train.strategy`: mirrored needs KERAS_BACKEND=tensorflow or jax. PyTorch uses one device in each "
                "process; torchrun starts a process for each GPU (docs/training.md)."
            )
        if train.batch_norm == "synchronised":
            raise ConfigError(
                "`train.batch_norm`: synchronised batch norm needs KERAS_BACKEND=tensorflow or jax. Use `auto`, with "
                "which positives are computed by other processes than their anchors."
            )
        cluster = self._cluster(train)
        self.device_count, self.name = 1, "one_device"
        if cluster:
            self.device_count, rank = _joined_torch_processes(cluster)
            self.name, self.is_chief, self._any_process = "multi_worker", rank == 0, _any_torch_process
            self._share = Share(rank, 1, self.device_count)
        elif len(list_devices()) > 1:
            self.notes.append(
                f"PyTorch trains on one of the {len(list_devices())} GPUs of this machine. To use all, start "
                f"`torchrun --nproc-per-node {len(list_devices())} --no-python -- hdc-keras pretrain ...`."
            )

    def _cluster(self, train: TrainConfig) -> str:
        """The description of the cluster that this process joins; "" if it trains by itself.

        Raises:
            ConfigError: the backend does not understand the description, or `multi_worker` finds none.
        """
        if train.strategy == "one_device":
            return ""
        backend, cluster = keras.backend.backend(), described_cluster()
        if cluster and cluster not in UNDERSTOOD[backend]:
            raise ConfigError(
                f"`train.strategy`: {STARTED_BY[cluster]}, but {_HOW_TO_START[backend]} `one_device` trains in each "
                "process by itself, which needs a run directory of its own."
            )
        if not cluster and train.strategy == "multi_worker":
            raise ConfigError(f"`train.strategy`: multi_worker finds no other processes: {_HOW_TO_START[backend]}")
        return cluster

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
        if keras.backend.backend() != "jax" or self.device_count == 1:
            yield
            return
        before = keras.distribution.distribution()
        data_parallel = keras.distribution.DataParallel(devices=list_devices(), auto_shard_dataset=False)
        keras.distribution.set_distribution(data_parallel)
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

    def distribute(self, make_dataset: Callable[[Share], Any]) -> Any:
        """Make the batches for `fit`. This process loads only the parts that its own devices need.

        Args:
            make_dataset: returns a dataset of a share of each batch.
        """
        if not self._strategy:
            return make_dataset(self._share)

        def dataset_of_process(context: Any) -> Any:
            count = self.replica_count // context.num_input_pipelines
            return make_dataset(Share(context.input_pipeline_id * count, count, self.replica_count))

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


def _joined_torch_processes(cluster: str) -> tuple[int, int]:
    """Join the other processes of PyTorch. Returns their number and the rank of this one."""
    import torch

    host, port = slurm_address()
    names = {"slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")}
    rank, count, local = (int(os.environ.get(n) or 0) for n in names.get(cluster, ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    host, port = os.environ.get("MASTER_ADDR", host), int(os.environ.get("MASTER_PORT", port))
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    if not torch.distributed.is_initialized():
        with _named_failure():
            torch.distributed.init_process_group(
                "nccl" if torch.cuda.is_available() else "gloo",
                init_method=f"tcp://{host}:{port}" if cluster == "slurm" else "env://",
                rank=rank,
                world_size=count,
                timeout=_PATIENCE,
            )
    return count, rank


@contextmanager
def _named_failure() -> Iterator[None]:
    """Turn what a backend raises if the processes cannot meet into a `ConfigError`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        how = _HOW_TO_START[keras.backend.backend()]
        raise ConfigError(f"`train.strategy`: the processes cannot meet: {error}. Expected: {how}") from error


def _any_torch_process(flag: bool) -> bool:
    import torch

    votes = torch.tensor([int(flag)], device="cuda" if torch.cuda.is_available() else "cpu")
    torch.distributed.all_reduce(votes)
    return bool(votes.item())


def _joined_jax_processes() -> tuple[int, int]:
    """Join the other processes of JAX, before it initialises any device. Returns their number and the rank of this."""
    import jax

    if not jax.distributed.is_initialized():
        with _named_failure():
            keras.distribution.initialize()
    return jax.process_count(), jax.process_index()


def _any_jax_process(flag: bool) -> bool:
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))


def _joined_cluster(kind: str) -> Any:
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver() if kind == "slurm" else None
    with _named_failure():
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)


def _any_process(strategy: Any) -> Callable[[bool], bool]:
    """Make the function behind `Distribution.any_process`, which sums the flag over all processes."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((), tf.int32)])
    def total(flag: Any) -> Any:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(flag,)), axis=None)

    return lambda flag: int(total(tf.constant(int(flag)))) > 0
