"""Loops whose iterations reuse the same memory, on every backend."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras

Tensor = Any
Nested = Any


def repeat(count: int, body: Callable[[Tensor, Nested], Nested], state: Nested) -> Nested:
    """Repeat `state = body(i, state)` for i = 0 ... count - 1, in order, with the memory of a single iteration."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.lax.fori_loop(0, count, body, state)
    if backend == "tensorflow":
        import tensorflow as tf

        # By default, TensorFlow runs up to ten iterations in parallel.
        return tf.while_loop(
            lambda i, _: i < count, lambda i, state: (i + 1, body(i, state)), (0, state), parallel_iterations=1
        )[1]
    for i in range(count):
        state = body(i, state)
    return state


def after(tensors: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """On TensorFlow, operations created in this context start only after `tensors` have been computed.

    Args:
        tensors: tensors; `None` among them is ignored.
    """
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.control_dependencies([tensor for tensor in tensors if tensor is not None])
