"""The data-parallel replicas that share a step, and their collectives."""

from typing import Any

import keras
from keras import tree

Tensor = Any
Nested = Any


class ReplicaGroup:
    """All replicas of the running step, as seen by one of them.

    A replica is a device of a TensorFlow strategy, or a process of PyTorch. This class is a group of one: the whole
    batch in one program, which JAX shards over its devices, of all processes.

    Attributes:
        count: number of replicas.
        index: index of this replica.
        shards: number of devices over which JAX shards the batch; 1 elsewhere.
        returns_vectors: whether a value that the step returns needs an axis along which Keras can join it.
        optimizer_sums: whether the optimizer adds up the gradients of the replicas.
    """

    count: int = 1
    index: Any = 0
    returns_vectors = False
    optimizer_sums = True

    def __init__(self) -> None:
        distribution = keras.distribution.distribution()
        self.shards: int = distribution.device_mesh.shape[0] if distribution else 1

    def local_part(self, everything: Nested, axis: int = 0) -> Nested:
        """This replica's part of tensors that hold the parts of all replicas, in order, along `axis`."""
        if self.count == 1:
            return everything

        def part(x: Tensor) -> Tensor:
            size = keras.ops.shape(x)[axis] // self.count
            return x[(slice(None),) * axis + (slice(self.index * size, (self.index + 1) * size),)]

        return tree.map_structure(part, everything)

    def gather(self, local: Nested, axis: int) -> Nested:
        """The tensors of all replicas, concatenated along `axis`."""
        return local

    def sum(self, local: list[Tensor]) -> list[Tensor]:
        """Sums over the replicas."""
        return local

    def mean(self, local: list[Tensor]) -> list[Tensor]:
        """Means over the replicas."""
        return local


class _TensorFlowReplicas(ReplicaGroup):
    """The devices of a `tf.distribute` strategy, of one process or several."""

    def __init__(self, context: Any) -> None:
        super().__init__()
        import tensorflow as tf

        self._context = context
        self.count = context.num_replicas_in_sync
        self.index = context.replica_id_in_sync_group
        # With several processes, Keras averages each returned value along its first axis.
        self.returns_vectors = isinstance(context.strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def gather(self, local: Nested, axis: int) -> Nested:
        return tree.map_structure(lambda x: self._gathered(x, axis), local)

    def _gathered(self, local: Tensor, axis: int) -> Tensor:
        import tensorflow as tf

        if local.dtype != tf.uint8:
            return self._context.all_gather(local, axis)
        # The collectives of several processes do not take bytes, so four of them travel as an integer.
        flat = tf.reshape(local, (tf.shape(local)[0], -1))
        length = tf.shape(flat)[1]
        flat = tf.pad(flat, ((0, 0), (0, -length % 4)))
        words = tf.bitcast(tf.reshape(flat, (tf.shape(flat)[0], -1, 4)), tf.int32)
        gathered = tf.bitcast(self._context.all_gather(words, axis), tf.uint8)
        flat = tf.reshape(gathered, (tf.shape(gathered)[0], -1))[:, :length]
        return tf.reshape(flat, (-1, *local.shape[1:]))

    def sum(self, local: list[Tensor]) -> list[Tensor]:
        return self._reduce("SUM", local)

    def mean(self, local: list[Tensor]) -> list[Tensor]:
        return self._reduce("MEAN", local)

    def _reduce(self, how: str, local: list[Tensor]) -> list[Tensor]:
        import tensorflow as tf

        return self._context.all_reduce(tf.distribute.ReduceOp[how], local) if local else local


class _TorchProcesses(ReplicaGroup):
    """The processes of `torch.distributed`, with a device each. Nothing is overlapped with the backward pass."""

    optimizer_sums = False

    def __init__(self) -> None:
        super().__init__()
        import torch.distributed

        self.count = torch.distributed.get_world_size()
        self.index = torch.distributed.get_rank()

    def gather(self, local: Nested, axis: int) -> Nested:
        import torch

        def gathered(x: Tensor) -> Tensor:
            parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.count)]
            torch.distributed.all_gather(parts, x.contiguous())
            return torch.cat(parts, axis)

        return tree.map_structure(gathered, local)

    def sum(self, local: list[Tensor]) -> list[Tensor]:
        """Sums over the replicas, all in one message."""
        import torch

        if not local:
            return local
        message = torch.cat([x.reshape(-1) for x in local])
        torch.distributed.all_reduce(message)
        parts = message.split([x.numel() for x in local])
        return [part.reshape(x.shape) for part, x in zip(parts, local, strict=True)]

    def mean(self, local: list[Tensor]) -> list[Tensor]:
        return [total / self.count for total in self.sum(local)]


def replicas_of_step() -> ReplicaGroup:
    """The replicas that share the running step, as the one that calls this sees them."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            return _TensorFlowReplicas(context)
    if backend == "torch":
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            return _TorchProcesses()
    return ReplicaGroup()


def replica_count_of(model: keras.Model) -> int:
    """How many replicas of a TensorFlow strategy a model was built for."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.num_replicas_in_sync if strategy else 1
