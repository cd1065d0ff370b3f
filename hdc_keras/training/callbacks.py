"""Callbacks around the training steps: stop on a signal, stop on non-finite values, save checkpoints."""

import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from hdc_keras.config import TrainConfig
from hdc_keras.errors import TrainingError
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.distribution import Distribution

# Communicating with other processes and reading a value from the device take time, so neither happens at every step.
_STEPS_BETWEEN_STOP_VOTES = 10
_STEPS_BETWEEN_FINITE_CHECKS = 25

# Embeddings with a smaller deviation have collapsed (our choice): their cosines are above 0.99, so that softmax at a
# temperature of 0.1 hardly tells them apart.
_LEAST_DEVIATION = 0.05


class StopOnSignal(keras.callbacks.Callback):
    """Finishes the current step and ends training on Ctrl-C or SIGTERM. A second signal ends the process at once.

    Processes that train together must stop after the same step, so they vote every few steps.

    Args:
        distribution: the devices of the run.

    Attributes:
        stopped: whether training must end.
        signal: number of the signal that this process received; `None` if it received none.
    """

    def __init__(self, distribution: Distribution):
        super().__init__()
        self.stopped = False
        self.signal: int | None = None
        self.distribution = distribution
        self._previous_handlers: dict[int, Any] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Install the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if number not in self._previous_handlers:
                self._previous_handlers[number] = signal.signal(number, self._receive)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """End training after this step if a signal has arrived."""
        if not self.distribution.is_multi_process:
            self.stopped = self.signal is not None
        elif (batch + 1) % _STEPS_BETWEEN_STOP_VOTES == 0 or batch + 1 == self.params["steps"]:
            self.stopped = self.distribution.any_process(self.signal is not None)
        if self.stopped:
            self.model.stop_training = True

    def restore(self) -> None:
        """Restore the previous signal handlers. Call it after everything is saved."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers.clear()

    def _receive(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(number, self._previous_handlers[number])


class StopOnNonFinite(keras.callbacks.Callback):
    """Raises `TrainingError` when a step had a non-finite loss or gradient (`train.on_nan: stop`).

    The step itself replaces such a gradient with zeros, so an occasional check is enough: until the next check,
    momentum and weight decay still act, but no NaN reaches the weights.

    Args:
        run: the run; the error names its newest checkpoint.
    """

    def __init__(self, run: RunDirectory):
        super().__init__()
        self.run = run
        self._skipped_before = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Ignore steps that were skipped before a resume."""
        self._skipped_before = self.model.step_record.count("skipped")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check every few steps: reading the count waits for the device."""
        if (batch + 1) % _STEPS_BETWEEN_FINITE_CHECKS == 0:
            self._check()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Check before anything is saved."""
        self._check()

    def _check(self) -> None:
        if self.model.step_record.count("skipped") > self._skipped_before:
            saved = self.run.checkpoints.files()
            raise TrainingError(
                f"non-finite value (NaN or infinity) in {self.model.step_record.first_non_finite()}. The gradient of "
                "this step was not applied. "
                + (f"{saved[-1]} was saved before it. " if saved else "No checkpoint was saved before it. ")
                + "Lower train.learning_rate, set train.clip_norm or use train.precision float32. With "
                "train.on_nan=skip the run skips such steps and continues."
            )


class CountSkippedSteps(keras.callbacks.Callback):
    """Logs how many steps were skipped so far because of a non-finite loss or gradient (`train.on_nan: skip`)."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add `skipped_steps` to the logs."""
        if logs is not None:
            logs["skipped_steps"] = self.model.step_record.count("skipped")


class WarnOfCollapse(keras.callbacks.Callback):
    """Warns when the embeddings of a level and task have become almost equal for all videos.

    Each collapse is reported once. `metrics.csv` has the deviation of every epoch.

    Args:
        warn: called with a message.
    """

    def __init__(self, warn: Callable[[str], None]):
        super().__init__()
        self.warn = warn
        self._collapsed: list[str] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compare the mean deviations of the epoch with the limit."""
        logs = logs or {}
        if not float(logs.get("loss", 0.0)):
            return  # all steps of the epoch were skipped
        deviations = {
            name.removesuffix("_deviation").replace("_", " "): float(value)
            for name, value in logs.items()
            if name.endswith("_deviation")
        }
        before, self._collapsed = self._collapsed, [n for n, value in deviations.items() if value < _LEAST_DEVIATION]
        found = [f"{name} {deviations[name]:.2g}" for name in self._collapsed if name not in before]
        if found:
            self.warn(
                f"Epoch {epoch + 1}: collapse. The embeddings of all videos are almost equal; their deviation is "
                f"{', '.join(found)} (1: spread evenly, 0: equal), and with equal embeddings nothing is learned. If it "
                "stays, start a new run with a lower train.learning_rate or more train.warmup_epochs; see "
                "docs/training.md."
            )


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves checkpoints and keeps the best one.

    One is saved every `train.checkpoint_every` epochs, after the last epoch, and on a stop. Within an epoch, one is
    saved when `train.checkpoint_minutes` have passed since the last one.

    Args:
        run: the run directory to save to.
        epochs: epochs of the whole run.
        train: how often to save, and how many checkpoints to keep.
        distribution: the devices of the run. The chief writes the run's files. The other processes save to a temporary
            folder, because all processes may have to take part in reading the variables that they share.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        run: RunDirectory,
        epochs: int,
        train: TrainConfig,
        distribution: Distribution | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__()
        self.run = run
        self.epochs = epochs
        self.train = train
        self.distribution = distribution
        self.clock = clock
        self._saved_at = clock()
        self._epoch_is_whole = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save within an epoch, if the last checkpoint is old enough."""
        self._epoch_is_whole = batch + 1 == self.params["steps"]
        if self.train.checkpoint_minutes is None or batch + 1 == self.params["steps"] or self.model.stop_training:
            return
        if self.distribution and self.distribution.is_multi_process:
            if (batch + 1) % _STEPS_BETWEEN_STOP_VOTES == 0 and self.distribution.any_process(self._is_old()):
                self._save()
        elif self._is_old():
            self._save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save if a checkpoint is due."""
        is_due = (epoch + 1) % self.train.checkpoint_every == 0 or epoch + 1 == self.epochs
        if is_due or self.model.stop_training:
            file = self._save()
            if file and logs and self._epoch_is_whole:
                self.run.checkpoints.keep_best(file, *checkpoint_score(logs))

    def _is_old(self) -> bool:
        assert self.train.checkpoint_minutes is not None
        return self.clock() - self._saved_at >= 60 * self.train.checkpoint_minutes

    def _save(self) -> Path | None:
        """The new checkpoint; `None` if this process is not the chief."""
        file = None
        if self.distribution and not self.distribution.is_chief:
            with tempfile.TemporaryDirectory() as folder:
                self.model.save(Path(folder) / "discarded.keras")
        else:
            self.run.require_lock()
            file = self.run.checkpoints.save(self.model, self.model.steps_taken, self.train.keep_checkpoints)
        self._saved_at = self.clock()
        return file


def checkpoint_score(logs: Mapping[str, Any]) -> tuple[str, float]:
    """By what a checkpoint is judged, and its score; higher is better.

    Args:
        logs: an epoch's. The mean of its kNN checks among training videos (one for each label column) counts, or else
            the validation loss, or else the training loss.
    """
    knn = [float(value) for name, value in logs.items() if name.startswith("knn_train_")]
    if knn:
        return "knn_train", sum(knn) / len(knn)
    return "loss", -float(logs.get("val_loss", logs["loss"]))
