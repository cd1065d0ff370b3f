"""What happens beside the steps: checkpoints, logs, the kNN check, stopping."""

import io
import json
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
from PIL import Image

from hdc_keras.config import TrainConfig
from hdc_keras.data.loading import DecodeFailures
from hdc_keras.errors import TrainingError
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.run_directory import RunDirectory

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
        if not self.distribution.processes:
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
            saved = self.run.checkpoints()
            raise TrainingError(
                f"not a finite number in {self.model.step_record.first_trouble()}. Its gradient was left out. "
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
        file = self.run.save_checkpoint(self.model, self.model.steps_taken, self.train.keep_checkpoints)
        if logs and not self.model.stop_training:
            knn = [float(value) for name, value in logs.items() if name.startswith("knn_")]
            by, score = ("knn", sum(knn) / len(knn)) if knn else ("loss", -float(logs.get("val_loss", logs["loss"])))
            self.run.keep_best(file, by, score)


class RunLogger(keras.callbacks.Callback):
    """Writes `metrics.csv`, the same as `metrics.json`, TensorBoard events and `failures.csv` after each epoch.

    Args:
        run: where to.
        first_epoch: number of the first epoch trained; lines of later ones, from an earlier try, are dropped.
        failures: bad videos met so far.
        clips_per_step: clips through the backbone per step, for the rate.
        measure: called with the number of each epoch done; gives further columns: the kNN check, or validation.
        waited: seconds that training has waited for batches so far; `None` where that is not measured.
    """

    def __init__(
        self,
        run: RunDirectory,
        first_epoch: int,
        failures: DecodeFailures,
        clips_per_step: int,
        measure: Callable[[int], Mapping[str, float]],
        waited: Callable[[], float] | None = None,
    ):
        super().__init__()
        self.run = run
        self.rows: list[dict[str, Any]] = [dict(row) for row in run.read_metrics() if int(row["epoch"]) <= first_epoch]
        self.failures = failures
        self.clips_per_step = clips_per_step
        self.measure = measure
        self.waited = waited
        self._waited_before = 0.0
        self._steps = 0
        self._began = time.monotonic()
        self._writer: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self._steps = 0
        self._waited_before = self.waited() if self.waited else 0.0
        self._began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count."""
        self._steps += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write everything; `logs` gets the added columns for the callbacks that follow."""
        if self._steps < self.params["steps"]:
            return  # stopped inside the epoch; its line comes when it has been ended
        seconds = time.monotonic() - self._began
        logs = logs if logs is not None else {}
        logs["clips_per_second"] = self._steps * self.clips_per_step / seconds
        if self.waited:
            logs["data_wait_share"] = (self.waited() - self._waited_before) / seconds
        logs["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        logs.update(self.measure(epoch + 1))
        step = self.model.steps_taken
        row = {
            "epoch": epoch + 1,
            "step": step,
            "seconds": round(seconds, 3),
            "videos_failed": len(self.failures.reasons),
        }
        self.rows.append(row | {name: float(f"{float(value):.6g}") for name, value in logs.items()})
        self.run.write_table(self.run.metrics_file.name, self.rows)
        # Rows from before a resume come from the CSV file, as text.
        numbers = [{name: float(value) for name, value in row.items() if value != ""} for row in self.rows]
        self.run.write_text("metrics.json", json.dumps(numbers, indent=1))
        self._write_events(step, logs)
        self.write_failures()

    def write_failures(self) -> None:
        """List the bad videos."""
        rows = [{"path": path, "cause": cause} for path, cause in sorted(self.failures.reasons.items())]
        if rows:
            self.run.write_table("failures.csv", rows)

    def write_views(self, png: bytes) -> None:
        """Show the picture of the views in TensorBoard."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(io.BytesIO(png)) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write_summary(0, Summary(value=[Summary.Value(tag="views", image=image)]))

    def _write_events(self, step: int, logs: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary()
        for name, value in logs.items():
            level, *rest = name.split("_")
            tag = f"{rest[-1]}/{level}_{'_'.join(rest[:-1])}" if level[0] == "P" and len(rest) > 1 else name
            summary.value.add(tag=tag, simple_value=float(value))
        self._write_summary(step, summary)

    def _write_summary(self, step: int, summary: Any) -> None:
        # TensorBoard's own writer, which needs no TensorFlow.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        try:
            self._writer = self._writer or EventFileWriter(str(self.run.event_folder))
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._writer.flush()
        except OSError as error:
            raise self.run.unwritable(self.run.event_folder, error) from error
