"""The optimizer and learning rate schedule of a fine-tuning recipe."""

import math
from typing import Any

import keras
from keras import ops

from hdc_keras.finetuning.recipes import FineTuning

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


@keras.saving.register_keras_serializable(package="hdc_keras")
class PyTorchSGD(keras.optimizers.Optimizer):
    """SGD with momentum as in PyTorch: `v = momentum * v + gradient`, `w -= learning_rate * v`.

    In Keras' SGD the learning rate is part of the velocity, so a lower rate takes effect some steps later.

    Args:
        learning_rate: number or schedule.
        momentum: momentum of the velocity v.
        name: name of the optimizer.
        **kwargs: further arguments of `keras.optimizers.Optimizer`.
    """

    def __init__(self, learning_rate: Any = 0.1, momentum: float = 0.9, name: str = "sgd", **kwargs: Any):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum

    def build(self, variables: list[Any]) -> None:
        """Create a velocity for each variable."""
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable and its velocity."""
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        velocity = self._velocities[self._get_variable_index(variable)]
        self.assign(velocity, self.momentum * velocity + gradient)
        self.assign_sub(variable, rate * velocity)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {**super().get_config(), "momentum": self.momentum}


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
