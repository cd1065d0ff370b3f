"""The training loop: `fit`, from any step to the last epoch."""

from collections.abc import Sequence
from typing import Any

import keras

from hdc_keras.training.batches import Batches
from hdc_keras.training.callbacks import StopOnSignal


def fit_epochs(
    model: Any,
    batches: Batches,
    steps_per_epoch: int,
    epochs: int,
    stop: StopOnSignal,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Train to the end of the last epoch, or until `stop` ends training.

    A model that was stopped inside an epoch first finishes that epoch, on the batches that it would have seen.

    Args:
        model: a compiled model that counts its `steps_taken`.
        batches: the training batches.
        steps_per_epoch: steps per epoch.
        epochs: total number of epochs.
        stop: the callback that ends training on a signal; it runs before the others.
        callbacks: the other callbacks.
    """
    while model.steps_taken < epochs * steps_per_epoch and not stop.stopped:
        epoch, step_in_epoch = divmod(model.steps_taken, steps_per_epoch)
        model.fit(
            batches.from_step(model.steps_taken),
            initial_epoch=epoch,
            epochs=epoch + 1 if step_in_epoch else epochs,
            steps_per_epoch=steps_per_epoch - step_in_epoch,
            verbose=0,
            shuffle=False,  # the batches are in random order already
            callbacks=[stop, *callbacks],
        )
