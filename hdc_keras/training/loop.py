"""The training loop: `fit`, from any step to the last epoch."""

from collections.abc import Sequence
from typing import Any

import keras

from hdc_keras.config import Length
from hdc_keras.training.batches import Batches
from hdc_keras.training.callbacks import StopOnSignal


def fit_epochs(
    model: Any,
    batches: Batches,
    length: Length,
    stop: StopOnSignal,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Train to the end of the last epoch, or until `stop` or another callback ends training.

    A model that was stopped inside an epoch first finishes that epoch, on the batches that it would have seen.

    Args:
        model: a compiled model that counts its `steps_taken`.
        batches: the training batches.
        length: how long to train.
        stop: the callback that ends training on a signal; it runs before the others.
        callbacks: the other callbacks.
    """
    whole_epochs = length.steps // length.steps_per_epoch
    while model.steps_taken < length.steps and not stop.stopped:
        epoch, step_in_epoch = divmod(model.steps_taken, length.steps_per_epoch)
        is_partial = step_in_epoch > 0 or epoch == whole_epochs
        end = min((epoch + 1) * length.steps_per_epoch, length.steps)
        model.fit(
            batches.from_step(model.steps_taken),
            initial_epoch=epoch,
            epochs=epoch + 1 if is_partial else whole_epochs,
            steps_per_epoch=end - model.steps_taken,
            verbose=0,
            shuffle=False,  # the batches are in random order already
            callbacks=[stop, *callbacks],
        )
        if model.stop_training:
            return
