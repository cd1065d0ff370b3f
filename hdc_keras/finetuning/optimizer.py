"""The optimizer and learning rate schedule of a fine-tuning recipe."""

import math
from typing import Any

import keras
from keras import ops

from hdc_keras.finetuning.recipes import FineTuning
from hdc_keras.training.optimizers import PyTorchSGD

# The cosine ends at this share of the initial learning rate, as in RSPNet's code.
_LAST_SHARE = 1e-3


@keras.saving.register_keras_serializable(package="hdc_keras")
class CosineByEpoch(keras.optimizers.schedules.LearningRateSchedule):
    """A cosine that moves once per epoch, as `CosineAnnealingLR` of PyTorch.

    Args:
        first: learning rate of the first epoch.
        last: learning rate after the last epoch.
        epochs: number of epochs.
        steps_per_epoch: steps of an epoch.
    """

    def __init__(self, first: float, last: float, epochs: int, steps_per_epoch: int):
        self.first = first
        self.last = last
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch

    def __call__(self, step: Any) -> Any:
        """Learning rate of a step, counted from 0."""
        epoch = ops.cast(ops.cast(step, "int32") // self.steps_per_epoch, "float32")
        share = 0.5 * (1.0 + ops.cos(math.pi * ops.minimum(epoch / self.epochs, 1.0)))
        return self.last + (self.first - self.last) * share

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {
            "first": self.first,
            "last": self.last,
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
        }


def recipe_optimizer(recipe: FineTuning, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Make the optimizer of a recipe, without weight decay: `VideoClassifier` adds that to the loss."""
    rate: Any = recipe.learning_rate
    if recipe.schedule == "cosine":
        last = _LAST_SHARE * recipe.learning_rate
        rate = CosineByEpoch(recipe.learning_rate, last, recipe.epochs, steps_per_epoch)
    elif recipe.schedule == "steps":
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            # A boundary is the last step with the rate before it.
            [drop * steps_per_epoch - 1 for drop in recipe.drops],
            [recipe.learning_rate * recipe.drop_factor**number for number in range(len(recipe.drops) + 1)],
        )
    if recipe.optimizer == "adam":
        return keras.optimizers.Adam(rate, epsilon=1e-8)  # as in PyTorch
    return PyTorchSGD(rate, recipe.momentum)
