"""The optimizer and learning rate schedule of a fine-tuning recipe."""

from typing import Any

import keras

from hdc_keras.finetuning.recipes import FineTuning
from hdc_keras.training.optimizers import WarmupCosine


def recipe_optimizer(recipe: FineTuning, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Make the optimizer of a recipe, without weight decay: `VideoClassifier` adds that to the loss."""
    rate: Any = recipe.learning_rate
    if recipe.schedule == "cosine":
        rate = WarmupCosine(recipe.learning_rate, 0, recipe.epochs * steps_per_epoch)
    elif recipe.schedule == "steps":
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [drop * steps_per_epoch for drop in recipe.drops],
            [recipe.learning_rate * recipe.drop_factor**number for number in range(len(recipe.drops) + 1)],
        )
    if recipe.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(rate, momentum=recipe.momentum)
