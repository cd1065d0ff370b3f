"""What a training step needs of a backend and Keras does not offer on all of them: pullbacks, loops, replicas."""

from collections.abc import Callable
from typing import Any

import keras
from keras import tree

Tensor = Any
Nested = Any
Pullback = Callable[[Nested], Nested]


def pullback(function: Callable[[Nested], tuple[Nested, Nested]], inputs: Nested) -> tuple[Nested, Nested, Pullback]:
    """Evaluate `function`, and get what carries gradients from its outputs back to its inputs.

    Args:
        function: pure; gives outputs and auxiliary results, through which no gradient flows.
        inputs: nested tensors.

    Returns:
        outputs, auxiliary results, and the pullback: gradients of a loss by the outputs -> by the inputs, `None` where
        an input has no part in them (on JAX: zeros). It may be called once.
    """
    return _PULLBACKS[keras.backend.backend()](function, inputs)


def _tensorflow_pullback(
    function: Callable[[Nested], tuple[Nested, Nested]], inputs: Nested
) -> tuple[Nested, Nested, Pullback]:
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tree.flatten(inputs))
        outputs, auxiliary = function(inputs)

    def pull(gradients: Nested) -> Nested:
        flat = tape.gradient(tree.flatten(outputs), tree.flatten(inputs), output_gradients=tree.flatten(gradients))
        return tree.pack_sequence_as(inputs, flat)

    return outputs, auxiliary, pull


def _jax_pullback(
    function: Callable[[Nested], tuple[Nested, Nested]], inputs: Nested
) -> tuple[Nested, Nested, Pullback]:
    import jax

    outputs, pull, auxiliary = jax.vjp(function, inputs, has_aux=True)
    return outputs, auxiliary, lambda gradients: pull(gradients)[0]


def _torch_pullback(
    function: Callable[[Nested], tuple[Nested, Nested]], inputs: Nested
) -> tuple[Nested, Nested, Pullback]:
    import torch

    with torch.enable_grad():
        leaves = tree.map_structure(lambda x: x.detach().requires_grad_(), inputs)
        outputs, auxiliary = function(leaves)

    def pull(gradients: Nested) -> Nested:
        flat = torch.autograd.grad(
            tree.flatten(outputs), tree.flatten(leaves), grad_outputs=tree.flatten(gradients), allow_unused=True
        )
        return tree.pack_sequence_as(inputs, list(flat))

    detached = (tree.map_structure(lambda x: x.detach(), nested) for nested in (outputs, auxiliary))
    return *detached, pull


_PULLBACKS = {"tensorflow": _tensorflow_pullback, "jax": _jax_pullback, "torch": _torch_pullback}


def repeat(count: int, body: Callable[[Tensor, Nested], Nested], state: Nested) -> Nested:
    """`state = body(i, state)` for i = 0 ... count - 1, one after the other: memory is that of a single turn."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.lax.fori_loop(0, count, body, state)
    if backend == "tensorflow":
        import tensorflow as tf

        # TensorFlow would otherwise run up to ten turns side by side.
        return tf.while_loop(
            lambda i, _: i < count, lambda i, state: (i + 1, body(i, state)), (0, state), parallel_iterations=1
        )[1]
    for i in range(count):
        state = body(i, state)
    return state


def rematerialised(function: Callable[..., Nested]) -> Callable[..., Nested]:
    """The same function, keeping only inputs and outputs for the backward pass and computing the rest again."""
    run = keras.remat(function)
    if keras.backend.backend() != "torch":
        return run
    from torch.utils.checkpoint import set_checkpoint_early_stop

    def computed_to_its_end(*arguments: Nested) -> Nested:
        # PyTorch would end the second computation by raising an error inside Keras' layers, and what handles errors
        # there keeps hold of all that was computed.
        with set_checkpoint_early_stop(False):
            return run(*arguments)

    return computed_to_its_end


class Replicas:
    """The devices that share a step under a TensorFlow strategy, as one of them sees it.

    JAX shards one program over its devices and PyTorch uses one: there, `count` is 1.

    Attributes:
        count: number of devices.
        index: which of them this is.
        on_machines: whether they belong to several processes.
    """

    def __init__(self) -> None:
        self.count: int = 1
        self.on_machines = False
        self.index: Any = 0
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self._context = tf.distribute.get_replica_context()
            if self._context is not None:
                self.count = self._context.num_replicas_in_sync
                self.index = self._context.replica_id_in_sync_group
                self.on_machines = isinstance(self._context.strategy, tf.distribute.MultiWorkerMirroredStrategy)

    @staticmethod
    def of(model: keras.Model) -> int:
        """How many devices a model was built for."""
        strategy = getattr(model, "distribute_strategy", None)
        return strategy.num_replicas_in_sync if strategy else 1

    def own(self, everyones: Nested, axis: int = 0) -> Nested:
        """This device's part of tensors that hold every device's, one after the other, along `axis`."""
        if self.count == 1:
            return everyones

        def part(x: Tensor) -> Tensor:
            size = keras.ops.shape(x)[axis] // self.count
            return x[(slice(None),) * axis + (slice(self.index * size, (self.index + 1) * size),)]

        return tree.map_structure(part, everyones)

    def gather(self, own: Nested, axis: int) -> Nested:
        """Every device's tensors, joined along `axis`."""
        if self.count == 1:
            return own
        return tree.map_structure(lambda x: self._context.all_gather(x, axis), own)

    def total(self, own: list[Tensor]) -> list[Tensor]:
        """Sums over the devices."""
        return own if self.count == 1 else self._reduce("SUM", own)

    def mean(self, own: list[Tensor]) -> list[Tensor]:
        """Means over the devices."""
        return own if self.count == 1 else self._reduce("MEAN", own)

    def _reduce(self, how: str, own: list[Tensor]) -> list[Tensor]:
        import tensorflow as tf

        return self._context.all_reduce(tf.distribute.ReduceOp[how], own) if own else own
