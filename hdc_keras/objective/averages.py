"""Exponential moving averages of weights: to evaluate, and to encode the keys of a queue of negatives."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any
Values = list[Tensor]


class WeightAverages(keras.layers.Layer):
    """Keeps an exponential moving average (EMA) of each variable of a network.

    `average = d * average + (1 - d) * value` with `d = min(decay, t / (t + 9))` after t updates, so that the first
    update copies the values, and a short run is not dominated by its initial weights. The statistics of batch norm are
    averaged like weights (as in EMAN: Cai et al. 2021, arXiv 2101.08482). Variables that are not numbers with a
    fraction, such as random states, are copied.

    Args:
        variables: the variables of the network. The averages start at their values.
        decay: the EMA's momentum, in [0, 1).

    Attributes:
        averages: an average for each variable.
    """

    def __init__(self, variables: Sequence[Any], decay: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.decay = decay
        self.averages = [
            self.add_weight(
                shape=v.shape, dtype=v.dtype, initializer="zeros", trainable=False, name=f"average_{number}"
            )
            for number, v in enumerate(variables)
        ]
        self.updates = self.add_weight(shape=(), dtype="float32", initializer="zeros", trainable=False, name="updates")
        for average, variable in zip(self.averages, variables, strict=True):
            average.assign(ops.convert_to_numpy(variable))  # a copy: JAX would share the array
        self.built = True

    def moved(self, values: Values) -> Values:
        """The values of `variables` of this layer after an update with the network's `values`. Assigns nothing."""
        updates = ops.convert_to_tensor(self.updates.value)
        decay = ops.minimum(self.decay, updates / (updates + 9.0))

        def moved(average: Any, value: Tensor) -> Tensor:
            if not keras.backend.is_float_dtype(average.dtype):
                return value
            share = ops.cast(decay, average.dtype)
            return share * average + (1.0 - share) * ops.stop_gradient(value)

        return [*(moved(a, v) for a, v in zip(self.averages, values, strict=True)), updates + 1.0]

    def update(self, values: Values) -> None:
        """Move the averages towards the network's `values`."""
        for variable, value in zip(self.variables, self.moved(values), strict=True):
            variable.assign(value)

    def copy_to(self, variables: Sequence[Any]) -> None:
        """Replace the values of a network's variables by their averages."""
        for variable, average in zip(variables, self.averages, strict=True):
            variable.assign(ops.convert_to_numpy(average))
