"""Writes `metrics.csv`, `metrics.json`, TensorBoard events, `failures.csv` and `views.png` of a run."""

import io
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
from PIL import Image

from hdc_keras.data.loading import DecodeFailures
from hdc_keras.runs.directory import RunDirectory


class RunLogger(keras.callbacks.Callback):
    """Writes `metrics.csv`, the same rows as `metrics.json`, TensorBoard events and `failures.csv` after each epoch.

    Args:
        run: the run directory to write to.
        first_epoch: epochs completed by the checkpoint that training starts from. Rows of later epochs are dropped:
            they were logged after that checkpoint was saved, and these epochs are trained again.
        failures: the videos that could not be decoded so far.
        clips_per_step: clips through the backbone per step, for `clips_per_second`.
        measure: called after each epoch with its number, counted from 1; returns more columns, such as the kNN check.
        waited: returns the seconds that training has waited for batches so far; `None` if this is not measured.
        writes: whether this process writes the run's files. The others compute the same values, because on JAX all
            processes must take part in each computation with the model's variables.
    """

    def __init__(
        self,
        run: RunDirectory,
        first_epoch: int,
        failures: DecodeFailures,
        clips_per_step: int,
        measure: Callable[[int], Mapping[str, float]],
        waited: Callable[[], float] | None = None,
        writes: bool = True,
    ):
        super().__init__()
        self.run = run
        self.writes = writes
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
        """Start timing the epoch."""
        self._steps = 0
        self._waited_before = self.waited() if self.waited else 0.0
        self._began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the steps of this epoch."""
        self._steps += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write everything, and add all columns to `logs` for the callbacks that follow."""
        if self._steps < self.params["steps"]:
            return  # stopped inside the epoch: its row is written when a resumed run has finished it
        seconds = time.monotonic() - self._began
        logs = logs if logs is not None else {}
        logs["clips_per_second"] = self._steps * self.clips_per_step / seconds
        if self.waited:
            logs["data_wait_share"] = (self.waited() - self._waited_before) / seconds
        logs["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        logs.update(self.measure(epoch + 1))
        step = self.model.steps_taken
        if not self.writes:
            return
        row = {
            "epoch": epoch + 1,
            "step": step,
            "seconds": round(seconds, 3),
            "videos_failed": len(self.failures.by_id),
        }
        self.rows.append(row | {name: float(f"{float(value):.6g}") for name, value in logs.items()})
        self.run.write_table(self.run.metrics_file.name, self.rows)
        # Rows from before a resume were read from the CSV file, so their values are text.
        numbers = [{name: float(value) for name, value in row.items() if value != ""} for row in self.rows]
        self.run.write_text("metrics.json", json.dumps(numbers, indent=1))
        self._write_events(step, logs)
        self.write_failures()

    def write_failures(self) -> None:
        """Write the videos that this process could not decode, if there are any, to `failures.csv`."""
        rows = [{"path": path, "cause": cause} for path, cause in sorted(self.failures.reasons.items())]
        if rows and self.writes:
            self.run.write_table("failures.csv", rows)

    def write_views(self, png: bytes) -> None:
        """Write `views.png`, and add it to the TensorBoard events."""
        if not self.writes:
            return
        self.run.write_bytes("views.png", png)
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
        # TensorBoard's writer works without TensorFlow.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        try:
            self._writer = self._writer or EventFileWriter(str(self.run.event_folder))
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._writer.flush()
        except OSError as error:
            raise self.run.unwritable(self.run.event_folder, error) from error
