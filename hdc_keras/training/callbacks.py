"""Callbacks around the training steps: stopping on a signal, watching for NaN, saving checkpoints."""

import signal
import tempfile
from pathlib import Path
from typing import Any

import keras

from hdc_keras.config import TrainConfig
from hdc_keras.errors import TrainingError
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.distribution import Distribution

# Processes ask each other whether to stop, and devices whether all is finite, every so many steps.
_STEPS_TO_AGREE = 10
_STEPS_BETWEEN_LOOKS = 25


class StopOnSignal(keras.callbacks.Callback):
    """Finishes the step when Ctrl-C or SIGTERM comes, then ends training. A second one ends at once.

    Processes that train together end after the same step: every few steps they ask each other.

    Attributes:
        stopped: whether training is to end.
        signal: the number of the signal that came, here; `None` when none did.

    Args:
        distribution: of the run.
    """

    def __init__(self, distribution: Distribution):
        super().__init__()
        self.stopped = False
        self.signal: int | None = None
        self.distribution = distribution
        self._before: dict[int, Any] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if number not in self._before:
                self._before[number] = signal.signal(number, self._note)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """End after this step if asked to."""
        if not self.distribution.is_multi_process:
            self.stopped = self.signal is not None
        elif (batch + 1) % _STEPS_TO_AGREE == 0 or batch + 1 == self.params["steps"]:
            self.stopped = self.distribution.anywhere(self.signal is not None)
        if self.stopped:
            self.model.stop_training = True

    def restore(self) -> None:
        """Give the signals back, once all is saved."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(number, self._before[number])


class WatchNumbers(keras.callbacks.Callback):
    """Ends training, or counts, when a step had losses or gradients that are not finite.

    The gradient of such a step counts as zero in `HDC`: only momentum and weight decay still act. So it is enough to
    look now and then.

    Args:
        on_nan: "stop" or "skip".
        run: its checkpoints are named in the error.
    """

    def __init__(self, on_nan: str, run: RunDirectory):
        super().__init__()
        self.on_nan = on_nan
        self.run = run
        self._known = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """What was skipped before counts no more."""
        self._known = self.model.step_record.count("skipped")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look, seldom: reading a number waits for the device."""
        if self.on_nan == "stop" and (batch + 1) % _STEPS_BETWEEN_LOOKS == 0:
            self._look()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look, before anything is saved."""
        if self.on_nan == "stop":
            self._look()
        elif logs is not None:
            logs["skipped_steps"] = self.model.step_record.count("skipped")

    def _look(self) -> None:
        if self.model.step_record.count("skipped") > self._known:
            saved = self.run.checkpoints.files()
            raise TrainingError(
                f"not a finite number in {self.model.step_record.first_non_finite()}. Its gradient was left out. "
                + (f"{saved[-1]} was saved before it. " if saved else "No checkpoint had been saved. ")
                + "Lower train.learning_rate, set train.clip_norm or use precision float32; train.on_nan=skip goes on "
                "without such steps."
            )


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves after every `train.checkpoint_every` epochs, after the last, and when training is stopped; keeps the best.

    Args:
        run: where to.
        train: how often, and how many are kept.
        is_chief: whether this process's files are the run's. Others save too, to a folder that is thrown away:
            reading weights that several processes share can take all of them.
    """

    def __init__(self, run: RunDirectory, train: TrainConfig, is_chief: bool = True):
        super().__init__()
        self.run = run
        self.train = train
        self.is_chief = is_chief

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save if it is time."""
        due = (epoch + 1) % self.train.checkpoint_every == 0 or epoch + 1 == self.train.epochs
        if not (due or self.model.stop_training):
            return
        if not self.is_chief:
            with tempfile.TemporaryDirectory() as folder:
                self.model.save(Path(folder) / "thrown-away.keras")
            return
        file = self.run.checkpoints.save(self.model, self.model.steps_taken, self.train.keep_checkpoints)
        if logs and not self.model.stop_training:
            knn = [float(value) for name, value in logs.items() if name.startswith("knn_")]
            by, score = ("knn", sum(knn) / len(knn)) if knn else ("loss", -float(logs.get("val_loss", logs["loss"])))
            self.run.checkpoints.keep_best(file, by, score)
