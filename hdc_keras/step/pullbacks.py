"""Vector-Jacobian products, which Keras does not offer, on every backend."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
from keras import tree

Tensor = Any
Nested = Any
Pullback = Callable[[Nested], Nested]


def pullback(function: Callable[[Nested], tuple[Nested, Nested]], inputs: Nested) -> tuple[Nested, Nested, Pullback]:
    """Evaluate `function` and return its pullback, which carries gradients from its outputs back to its inputs.

    Args:
        function: a pure function that returns outputs and auxiliary results; no gradient flows through the latter.
        inputs: nested tensors.

    Returns:
        outputs, auxiliary results, and the pullback. Given the gradients of a loss with respect to the outputs, it
        returns the gradients with respect to the inputs: `None` for an input that the outputs do not depend on (zeros
        on JAX). It may be called only once.
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


def without_autograd() -> AbstractContextManager[Any]:
    """Turn off PyTorch's autograd; `pullback` turns it on where gradients are needed."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()
