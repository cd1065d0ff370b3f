"""What happens beside the steps: checkpoints, logs, the kNN check, stopping."""

import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras

from hdc_keras.config import TrainConfig
from hdc_keras.data.loading import DecodeFailures
from hdc_keras.training.run_directory import RunDirectory


class StopOnSignal(keras.callbacks.Callback):
    """Finishes the step when Ctrl-C or SIGTERM comes, then ends training. A second Ctrl-C ends at once.

    Attributes:
        stopped: whether a signal came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopped = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """End after this step if asked to."""
        if self.stopped:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Give the signals back."""
        self.restore()

    def restore(self) -> None:
        """Give the signals back; training may also end by an error."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: Any) -> None:
        self.stopped = True
        signal.signal(number, self._before[number])


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves after every `train.checkpoint_every` epochs, after the last, and when training is stopped.

    Args:
        run: where to.
        train: how often, and how many are kept.
    """

    def __init__(self, run: RunDirectory, train: TrainConfig):
        super().__init__()
        self.run = run
        self.train = train

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save if it is time."""
        due = (epoch + 1) % self.train.checkpoint_every == 0 or epoch + 1 == self.train.epochs
        if due or self.model.stop_training:
            self.run.save_checkpoint(self.model, int(self.model.optimizer.iterations), self.train.keep_checkpoints)


class RunLogger(keras.callbacks.Callback):
    """Writes `metrics.csv`, TensorBoard events and `failures.csv` after each epoch.

    Args:
        run: where to.
        first_epoch: number of the first epoch trained; lines of later ones, from an earlier try, are dropped.
        failures: bad videos met so far.
        clips_per_step: clips through the backbone per step, for the rate.
        knn: called with the number of each epoch done; gives further columns.
    """

    def __init__(
        self,
        run: RunDirectory,
        first_epoch: int,
        failures: DecodeFailures,
        clips_per_step: int,
        knn: Callable[[int], Mapping[str, float]],
    ):
        super().__init__()
        self.run = run
        self.rows: list[dict[str, Any]] = [dict(row) for row in run.read_metrics() if int(row["epoch"]) <= first_epoch]
        self.failures = failures
        self.clips_per_step = clips_per_step
        self.knn = knn
        self._steps = 0
        self._began = time.monotonic()
        self._writer: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self._steps = 0
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
        logs["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        logs.update(self.knn(epoch + 1))
        step = int(self.model.optimizer.iterations)
        row = {
            "epoch": epoch + 1,
            "step": step,
            "seconds": round(seconds, 3),
            "videos_failed": len(self.failures.reasons),
        }
        self.rows.append(row | {name: float(f"{float(value):.6g}") for name, value in logs.items()})
        self.run.write_table(self.run.metrics_file.name, self.rows)
        self._write_events(step, logs)
        self.write_failures()

    def write_failures(self) -> None:
        """List the bad videos."""
        rows = [{"path": path, "cause": cause} for path, cause in sorted(self.failures.reasons.items())]
        if rows:
            self.run.write_table("failures.csv", rows)

    def _write_events(self, step: int, logs: Mapping[str, Any]) -> None:
        # TensorBoard's own writer, which needs no TensorFlow.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = self._writer or EventFileWriter(str(self.run.event_folder))
        summary = Summary()
        for name, value in logs.items():
            level, *rest = name.split("_")
            tag = f"{rest[-1]}/{level}_{'_'.join(rest[:-1])}" if level[0] == "P" and len(rest) > 1 else name
            summary.value.add(tag=tag, simple_value=float(value))
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()
