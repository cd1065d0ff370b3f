"""Optimizers and the learning rate schedule."""

import math
from typing import Any

import keras
from keras import ops

from hdc_keras.config import TrainConfig


@keras.saving.register_keras_serializable(package="hdc_keras")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 to the peak, then half a cosine down to 0 (SGDR without restarts, arXiv 1608.03983).

    Args:
        peak: greatest learning rate.
        warmup_steps: steps of the linear part.
        total_steps: steps in all.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int):
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step: Any) -> Any:
        """Learning rate of the step, counted from 0."""
        step = ops.cast(step, "float32")
        # The first step already moves the weights.
        warmup = (step + 1.0) / max(1, self.warmup_steps)
        share = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(share, 0.0, 1.0)))
        return self.peak * ops.where(step < self.warmup_steps, warmup, cosine)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "total_steps": self.total_steps}


def build_optimizer(config: TrainConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """The optimizer that `train` describes. Weight decay leaves out biases and batch norm."""
    schedule = WarmupCosine(
        config.learning_rate,
        # A run shorter than the warm-up would never get to its learning rate.
        round(min(config.warmup_epochs, config.epochs / 2) * steps_per_epoch),
        config.epochs * steps_per_epoch,
    )
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay)
    else:
        optimizer = keras.optimizers.SGD(
            schedule, momentum=0.9, nesterov=True, weight_decay=config.weight_decay or None
        )
    exclude_from_decay(optimizer)
    return optimizer


def exclude_from_decay(optimizer: keras.optimizers.Optimizer) -> None:
    """Keep weight decay from biases and batch norm. Keras does not save this with a model, so that a loaded optimizer
    must be told again."""
    if optimizer.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
