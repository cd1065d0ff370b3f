"""The training loop: `fit`, from any step to the last epoch."""

from collections.abc import Sequence
from typing import Any

import keras

from hdc_keras.training.batches import Batches
from hdc_keras.training.callbacks import StopOnSignal


def fit_epochs(
    model: Any,
    batches: Batches,
    step: int,
    steps_per_epoch: int,
    epochs: int,
    stop: StopOnSignal,
    callbacks: Sequence[keras.callbacks.Callback],
) -> int:
    """Train from `step` to the end of the last epoch, or until `stop` stops training.

    Args:
        model: a compiled model that counts its `steps_taken`.
        batches: what it is trained on.
        step: steps taken so far; a run that was stopped inside an epoch first finishes that epoch.
        steps_per_epoch: steps in an epoch.
        epochs: total number of epochs.
        stop: one of the callbacks.
        callbacks: all callbacks.

    Returns:
        The number of steps taken so far.
    """
    while step < epochs * steps_per_epoch and not stop.stopped:
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        model.fit(
            batches.from_step(step),
            initial_epoch=epoch,
            epochs=epoch + 1 if step_in_epoch else epochs,
            steps_per_epoch=steps_per_epoch - step_in_epoch,
            verbose=0,
            shuffle=False,  # the batches are in random order already
            callbacks=list(callbacks),
        )
        step = model.steps_taken
    return step
