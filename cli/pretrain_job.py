"""The part of `hdc-keras pretrain` that runs after Keras is imported: progress, messages and exit codes."""

import signal
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import keras
from rich.console import Group
from rich.live import Live
from rich.table import Table

from hdc_keras.config import Experiment, Length
from hdc_keras.data.from_experiment import host_policy, length_of
from hdc_keras.data.records import VideoRecord, VideoSet
from hdc_keras.devices import list_devices
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.dry_run import dry_run
from hdc_keras.training.memory import MemoryNeed
from hdc_keras.training.pretraining import Outcome, pretrain
from hdc_keras.training.time_budget import steps_within

from .console import console, print_notes, print_parts, progress_bar

# Minimum seconds between two redraws. Each redraw copies the metrics from the device.
_REDRAW_S = 0.5
# Without a terminal, a line is printed for about this many epochs of the run.
_EPOCH_LINES = 20


def run_job(experiment: Experiment, path: Path, resume: bool, videos: VideoSet) -> int:
    """Train with progress on the screen, print the outcome, and return the exit code."""
    # This comes first, because TensorFlow cannot join a cluster after it has initialised its devices.
    distribution = Distribution(experiment.train)
    if not distribution.is_chief:
        console.print("This is a worker process. The chief process shows progress and writes the run.")
        console.quiet = True
    # Every input that can be refused is checked before the run directory is created.
    run = RunDirectory(path)
    if not resume and distribution.is_chief:
        run.check_free()
    records, notes = videos
    length_of(experiment, records)
    host_policy(experiment)
    # The chief alone locks the run, for all processes that train it together.
    with run.sole_training(_warn) if distribution.is_chief else nullcontext():
        if not resume and distribution.is_chief:
            run.create(experiment, records)
        return _train(experiment, run, records, notes, resume, distribution)


def _train(
    experiment: Experiment,
    run: RunDirectory,
    records: list[VideoRecord],
    notes: list[str],
    resume: bool,
    distribution: Distribution,
) -> int:
    _print_setup(run, experiment, records, notes)
    print_notes(distribution.notes)
    length = length_of(experiment, records)
    screen = Screen(length)
    with screen.live if console.is_terminal else nullcontext():
        outcome = pretrain(
            experiment, run, records, resume=resume, callbacks=[screen], distribution=distribution, warn=_warn
        )
    return _print_outcome(run, length, outcome)


def fit_to_budget(experiment: Experiment, videos: VideoSet, seconds: float) -> Experiment:
    """The experiment with as many steps as fit into a time on this machine, which is measured and printed."""
    distribution = Distribution(experiment.train)
    with console.status("taking some steps to measure their time"):
        steps, step_seconds = steps_within(seconds, experiment, videos.records, distribution)
    console.print(
        f"Time budget: a step takes {step_seconds:.2g} s on this machine, so the run takes {steps:,} steps.",
        soft_wrap=True,
    )
    train = experiment.train.model_copy(update={"steps": steps, "epochs": None})
    return experiment.model_copy(update={"train": train})


def dry_run_job(experiment: Experiment, videos: VideoSet) -> int:
    """Take two steps, print their cost and an estimate for the whole run, and return the exit code."""
    distribution = Distribution(experiment.train)
    records, notes = videos
    length_of(experiment, records)
    print_notes([*notes, *distribution.notes])
    with console.status("building the model and taking two steps"):
        found = dry_run(experiment, records, distribution, _tell_need)
    table = Table(show_header=False, box=None, padding=(0, 2))
    rows = {
        "device": f"{_device()}, {keras.backend.backend()}, {distribution.name}, {_compiler(found.xla)}",
        "batch of windows": f"{found.batch_shape} {found.batch_dtype}",
        "views": f"{found.views_shape}  ({', '.join(found.view_names)})",
        **{f"features of {level}": f"{shape}" for level, shape in found.feature_shapes.items()},
        "weights": f"{found.backbone_weights:,} in {experiment.model.backbone}, {found.head_weights:,} in the heads",
        "learning rate": f"{experiment.train.peak_learning_rate:g} after the warm-up ({experiment.train.optimizer})",
        "first batch": f"{found.first_batch_s:.1f} s",
        "first step": f"{found.first_step_s:.1f} s, including tracing and compiling; loss {found.loss:.3f}",
        "second step": f"{found.step_s:.2f} s, {found.clips / found.step_s:.1f} clips/s",
        "memory needed": f"{found.need}",
        "peak memory": f"{found.memory_gib:.2f} GiB ({found.memory_of})",
        "whole run": f"{found.steps:,} steps, about {timedelta(seconds=round(found.steps * found.step_s))} if data "
        "loading keeps up, without kNN checks and checkpoints",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print("Nothing was written.")
    return 0


def _tell_need(need: MemoryNeed) -> None:
    """Say before the first step if it will probably fail."""
    if need.fits is False:
        _warn(f"Memory: a step needs {need}.")


def _warn(text: str) -> None:
    console.print(text, style="yellow", soft_wrap=True)


def _print_setup(run: RunDirectory, experiment: Experiment, records: list[VideoRecord], notes: list[str]) -> None:
    trained = sum(record.split == "train" for record in records)
    held_out = sum(record.split == "test" for record in records)
    groups = len({record.group for record in records if record.group})
    console.print(
        f"Videos: {trained} for training, {held_out} held out for testing"
        + (f", in {groups} groups that are not split" if groups else "")
    )
    print_notes([f"  {note}" for note in notes])
    print_parts(
        "Run: ",
        (str(run.path), "bold"),
        f"   backbone {experiment.model.backbone}, {_device()}, {keras.backend.backend()}",
    )


def _print_outcome(run: RunDirectory, length: Length, outcome: Outcome) -> int:
    """Print how the run ended and what to do next, and return the exit code."""
    if outcome.failed_videos:
        print_parts(
            (f"{len(outcome.failed_videos)} video(s) could not be decoded and were skipped", "yellow"),
            f"; {run.path / 'failures.csv'} lists them.",
        )
    if outcome.skipped:
        print_parts(
            (f"The gradient of {outcome.skipped} step(s) was discarded", "yellow"),
            " because it or the loss was non-finite.",
        )
    if not outcome.finished:
        console.print(
            f"Stopped after step {outcome.step:,} of {length.steps:,} ({outcome.epochs} of {length.epochs} epochs); a "
            f"checkpoint is saved. Continue with: hdc-keras pretrain --run {run.path} --resume"
        )
        # No signal: another process of the cluster received it.
        return 128 + (outcome.signal or signal.SIGTERM)
    console.print(f"{run.path / 'views.png'} shows the views of the first videos.")
    print_parts(("Done", "green"), f": {outcome.step:,} steps. The run is in ", (str(run.path), "bold"), ". Next:")
    console.print(f"  hdc-keras evaluate --run {run.path} --protocol linear")
    console.print(f"  hdc-keras export --run {run.path} --format saved_model")
    return 0


class Screen(keras.callbacks.Callback):
    """Shows a progress bar (speed, loss, kNN check) and a table of loss, accuracy and weight by level and task."""

    def __init__(self, length: Length):
        super().__init__()
        self.epochs = length.epochs
        self.bar = progress_bar()
        self.task = self.bar.add_task("pretraining", total=length.steps, note="")
        self.live = Live(self.bar, console=console, refresh_per_second=4)
        self.knn: dict[str, float] = {}
        self._drawn = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the bar at the step that a resumed run has reached."""
        self.bar.update(self.task, completed=self.model.steps_taken)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Advance the bar, and redraw the table if the last redraw is old enough."""
        self.bar.advance(self.task)
        if console.is_terminal and logs and time.monotonic() - self._drawn > _REDRAW_S:
            self._drawn = time.monotonic()
            self._draw({name: float(value) for name, value in self.model.get_metrics_result().items()})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Redraw the table or, without a terminal, print a line for some epochs."""
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.knn.update({name: value for name, value in values.items() if name.startswith("knn_")})
        rate = values.get("clips_per_second", 0.0)
        knn = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in self.knn.items())
        epochs = self.epochs
        self.bar.update(
            self.task,
            description=f"epoch {epoch + 1}/{epochs}",
            note=f"{rate:.0f} clips/s  loss {values['loss']:.3f}  {knn}",
        )
        if console.is_terminal:
            self._draw(values)
        elif (epoch + 1) % max(1, epochs // _EPOCH_LINES) == 0 or epoch + 1 == epochs:
            line = f"epoch {epoch + 1}/{epochs}  loss {values['loss']:.3f}  {rate:.0f} clips/s  {knn}"
            console.print(f"{line}  {self._levels(values)}", soft_wrap=True)

    def _levels(self, values: dict[str, float]) -> str:
        return "  ".join(
            f"{level} {task} {values[f'{level}_{task}_loss']:.2f} (x{values[f'{level}_{task}_weight']:.2f})"
            for level, task in self.model.objective.pairs
        )

    def _draw(self, values: dict[str, float]) -> None:
        table = Table(box=None, padding=(0, 2))
        table.add_column("level")
        for task in self.model.objective.tasks:
            for column in ("loss", "accuracy", "weight"):
                table.add_column(f"{task} {column}", justify="right")
        for level in self.model.contrast_config.used_levels:
            cells = [
                f"{values[f'{level}_{task}_{column}']:.2f}" if (level, task) in self.model.objective.pairs else ""
                for task in self.model.objective.tasks
                for column in ("loss", "accuracy", "weight")
            ]
            table.add_row(level, *cells)
        self.live.update(Group(self.bar, table))


def _compiler(xla: bool) -> str:
    if keras.backend.backend() == "torch":
        return "PyTorch's own kernels"
    return f"XLA {'on' if xla else 'off'}"


def _device() -> str:
    devices = list_devices()
    return devices[0] if len(devices) == 1 else f"{len(devices)} devices"
