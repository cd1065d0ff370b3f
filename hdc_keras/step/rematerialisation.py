"""Recomputing activations in the backward pass instead of keeping them, on every backend."""

from collections.abc import Callable
from typing import Any

import keras

Nested = Any


def rematerialised(function: Callable[..., Nested]) -> Callable[..., Nested]:
    """The same function, which keeps only its inputs and outputs and recomputes the rest in the backward pass."""
    run = keras.remat(function)
    if keras.backend.backend() != "torch":
        return run
    from torch.utils.checkpoint import set_checkpoint_early_stop

    def without_early_stop(*arguments: Nested) -> Nested:
        # PyTorch ends the recomputation early by raising an error inside Keras' layers, whose error handling would keep
        # every recomputed tensor alive.
        with set_checkpoint_early_stop(False):
            return run(*arguments)

    return without_early_stop
