"""Loss weights for each level and task, computed from the measured invariance of the level.

The paper models invariance as loss weights. We do not know its exact formula; the one here is our choice.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from hdc_keras.config import ContrastConfig
from hdc_keras.objective.heads import unit_length

Tensor = Any

# Lower bound of the invariance, because a negative number cannot be raised to the power `gamma`.
_LEAST_INVARIANCE = 1e-3


def invariance(anchor: Tensor, positive: Tensor) -> Tensor:
    """Mean cosine of positive pairs minus mean cosine of negative pairs, without a gradient.

    Args:
        anchor: (batch, channels).
        positive: (batch, channels); row i is the partner of the anchor's row i, and every other row is a negative.

    Returns:
        Scalar float32 in [-2, 2]; 0 if partners are no more similar than negatives.
    """
    anchor, positive = (unit_length(ops.stop_gradient(x)) for x in (anchor, positive))
    batch = ops.cast(ops.shape(anchor)[0], "float32")
    positive_sum = ops.sum(anchor * positive)
    total_sum = ops.sum(ops.sum(anchor, axis=0) * ops.sum(positive, axis=0))
    return positive_sum / batch - (total_sum - positive_sum) / (batch * (batch - 1.0))


class InvarianceWeights(keras.layers.Layer):
    """Keeps a moving average of the invariance of each level and task, and turns it into loss weights.

    `w_l = i_l^gamma`, clipped to `weight_range` times its mean and scaled to mean 1 over the levels of a task, so that
    weighting does not change the effective learning rate. The average starts at the first measured value; before that,
    all weights are 1.

    Args:
        config: levels, mode and constants.
        tasks: names of the tasks.
    """

    def __init__(self, config: ContrastConfig, tasks: Sequence[str], **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.config = config
        self.tasks = tuple(tasks)
        carries = [[level in config.levels_of(task) for task in self.tasks] for level in config.used_levels]
        self.carries = np.array(carries, np.float32)
        shape = self.carries.shape
        self.average = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="invariance_average")
        self.updates = self.add_weight(shape=(), initializer="zeros", trainable=False, name="invariance_updates")
        self.built = True

    def update(self, measured: Tensor) -> None:
        """Move the average towards (levels, tasks) `measured`."""
        momentum = ops.where(self.updates < 0.5, 0.0, self.config.momentum)
        self.average.assign(momentum * self.average + (1.0 - momentum) * measured)
        self.updates.assign(ops.minimum(self.updates + 1.0, 1.0))

    def loss_weights(self) -> Tensor:
        """Weights (levels, tasks) float32; 0 where a level does not carry the task."""
        return ops.multiply(self._unmasked(), self.carries)

    def _unmasked(self) -> Tensor:
        shape = self.average.shape
        if self.config.weighting == "uniform":
            return ops.ones(shape)
        if self.config.weighting == "fixed":
            fixed = ops.convert_to_tensor(
                [self.config.fixed_weights[level] for level in self.config.used_levels], "float32"
            )
            return ops.broadcast_to(fixed[:, None], shape)
        powered = ops.power(ops.maximum(self.average, _LEAST_INVARIANCE), self.config.gamma)
        clipped = ops.clip(powered / self._mean(powered), *self.config.weight_range)
        weights = clipped / self._mean(clipped)
        return ops.where(self.updates < 0.5, ops.ones(shape), weights)

    def _mean(self, values: Tensor) -> Tensor:
        """(1, tasks): mean over the levels that carry each task."""
        total = ops.sum(ops.multiply(values, self.carries), axis=0, keepdims=True)
        return ops.divide(total, self.carries.sum(axis=0, keepdims=True))
