"""Counts steps and remembers the first one with non-finite values."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any


class StepRecord(keras.layers.Layer):
    """Counts steps, and records where values first became non-finite (NaN or infinity).

    Attributes:
        steps: number of steps taken, including the skipped ones.
        skipped: number of steps with a non-finite loss or gradient; their gradient is set to zero, and moving averages
            are not updated.

    Args:
        names: names of the values that are checked.
    """

    def __init__(self, names: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.names = list(names)
        self.steps = self._counter("steps")
        self.skipped = self._counter("skipped")
        self._first_step = self._counter("first_skipped_step")
        self._first_names = self.add_weight(
            shape=(len(names),), initializer="zeros", dtype="float32", trainable=False, name="first_not_finite"
        )
        self.built = True

    def update(self, is_good: Tensor, values: Tensor) -> None:
        """Count a step.

        Args:
            is_good: whether its loss and gradient are finite.
            values: (names,) the values that are checked.
        """
        self.steps.assign(self.steps + 1)
        is_first = ops.logical_and(ops.logical_not(is_good), ops.equal(self.skipped.value, 0))
        self._first_step.assign(ops.where(is_first, self.steps.value, self._first_step.value))
        not_finite = ops.cast(ops.logical_not(ops.isfinite(values)), "float32")
        self._first_names.assign(ops.where(is_first, not_finite, self._first_names.value))
        self.skipped.assign(self.skipped + ops.cast(ops.logical_not(is_good), "int32"))

    def load_own_variables(self, store: Any) -> None:
        """Restore the record. Names that an earlier version did not have were finite."""
        for place, variable in enumerate([self.steps, self.skipped, self._first_step]):
            variable.assign(store[str(place)][()])
        saved = store["3"][()]
        self._first_names.assign(np.pad(saved, (0, max(0, len(self.names) - len(saved)))))

    def first_non_finite(self) -> str:
        """The first skipped step and what was non-finite in it, as in "step 12: P4_temporal_loss"."""
        found = ops.convert_to_numpy(self._first_names)
        names = [name for name, bad in zip(self.names, found, strict=True) if bad]
        what = ", ".join(names) if names else "the gradient, while all losses are finite"
        return f"step {int(ops.convert_to_numpy(self._first_step))}: {what}"

    def count(self, name: str) -> int:
        """`steps` or `skipped` as a Python integer."""
        return int(ops.convert_to_numpy(getattr(self, name)))

    def _counter(self, name: str) -> Any:
        return self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False, name=name)


class LaggingValue:
    """Copies a number from a GPU of PyTorch to the host, one call behind, so that the host never waits for the GPU."""

    def __init__(self) -> None:
        self._copies: list[tuple[Tensor, Any]] = []

    def __call__(self, value: Tensor) -> Tensor:
        """Begin to copy `value`, a scalar, and return the value of the call before; the first call returns its own."""
        import torch

        copy, event = value.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record()
        self._copies.append((copy, event))
        copy, event = self._copies[0]
        event.synchronize()
        self._copies = self._copies[-1:]
        return copy
