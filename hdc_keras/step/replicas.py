"""The data-parallel replicas that share a step under a TensorFlow strategy, and their collectives."""

from typing import Any

import keras
from keras import tree

Tensor = Any
Nested = Any


class ReplicaGroup:
    """All replicas of the running step, as seen by one of them.

    JAX shards one program over its devices and PyTorch uses one device; there, `count` is 1.

    Attributes:
        count: number of replicas.
        shards: number of devices over which JAX shards the batch; 1 elsewhere.
        index: index of this replica.
        spans_processes: whether the replicas run in several processes.
    """

    def __init__(self) -> None:
        self.count: int = 1
        self.spans_processes = False
        self.index: Any = 0
        distribution = keras.distribution.distribution()
        self.shards: int = distribution.device_mesh.shape[0] if distribution else 1
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self._context = tf.distribute.get_replica_context()
            if self._context is not None:
                self.count = self._context.num_replicas_in_sync
                self.index = self._context.replica_id_in_sync_group
                self.spans_processes = isinstance(self._context.strategy, tf.distribute.MultiWorkerMirroredStrategy)

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
        if self.count == 1:
            return local
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
        """Sums over the replicas."""
        return local if self.count == 1 else self._reduce("SUM", local)

    def mean(self, local: list[Tensor]) -> list[Tensor]:
        """Means over the replicas."""
        return local if self.count == 1 else self._reduce("MEAN", local)

    def _reduce(self, how: str, local: list[Tensor]) -> list[Tensor]:
        import tensorflow as tf

        return self._context.all_reduce(tf.distribute.ReduceOp[how], local) if local else local


def replica_count_of(model: keras.Model) -> int:
    """How many replicas a model was built for."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.num_replicas_in_sync if strategy else 1
