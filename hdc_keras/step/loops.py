"""Loops whose iterations reuse the same memory, on every backend."""

from collections.abc import Callable
from typing import Any

import keras

Tensor = Any
Nested = Any


def repeat(count: int, body: Callable[[Tensor, Nested], Nested], state: Nested, unrolled: bool = False) -> Nested:
    """Repeat `state = body(i, state)` for i = 0 ... count - 1, in order, with the memory of a single iteration.

    Args:
        count: number of repetitions.
        body: the step of the loop.
        state: nested tensors.
        unrolled: on TensorFlow, repeat the operations instead of looping, because replicas cannot communicate within
            `tf.while_loop`.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.lax.fori_loop(0, count, body, state)
    if backend == "tensorflow":
        import tensorflow as tf

        if not unrolled:
            # By default, TensorFlow runs up to ten iterations in parallel.
            return tf.while_loop(
                lambda i, _: i < count, lambda i, state: (i + 1, body(i, state)), (0, state), parallel_iterations=1
            )[1]
        for i in range(count):
            # Otherwise, TensorFlow may start an iteration before it has freed the memory of the one before.
            with tf.control_dependencies(keras.tree.flatten(state)):
                state = body(tf.constant(i), state)
        return state
    for i in range(count):
        state = body(i, state)
    return state
