"""A run directory: all that is needed to repeat, resume, evaluate and export a run."""

import csv
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment, dump_experiment, load_experiment
from hdc_keras.errors import RunError
from hdc_keras.whole_files import write_whole

_BEST_NOTE = "best.json"
_PACKAGES = ("hdc-keras", "keras", "tensorflow", "jax", "torch", "numpy", "av")


class RunDirectory:
    """Paths and files of one run. Every file is written under a temporary name and renamed when it is complete.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        """The resolved experiment."""
        return self.path / "config.yaml"

    @property
    def checkpoint_folder(self) -> Path:
        """Where checkpoints are, one file each, named by the step they were taken after."""
        return self.path / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """A copy of the best checkpoint (see `keep_best`)."""
        return self.checkpoint_folder / "best.keras"

    @property
    def event_folder(self) -> Path:
        """TensorBoard events."""
        return self.path / "events"

    @property
    def metrics_file(self) -> Path:
        """One line per epoch."""
        return self.path / "metrics.csv"

    def check_free(self) -> None:
        """Refuse a folder that a new run must not touch. A run without a checkpoint holds nothing to lose.

        Raises:
            RunError: it holds a run, or something else.
        """
        if self.checkpoints():
            raise RunError(
                f"{self.path} already holds a run, which is left as it is. Continue it with --resume, or choose "
                "another folder with --run."
            )
        if self.path.exists() and not self.config_file.exists() and (self.path.is_file() or any(self.path.iterdir())):
            raise RunError(f"{self.path} exists and is no run. Choose a new or empty folder with --run.")

    def create(self, experiment: Experiment) -> None:
        """Make the folder for a new run.

        Raises:
            RunError: it is not free, or cannot be written.
        """
        self.check_free()
        try:
            self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
            self.write_text("environment.json", json.dumps(describe_environment(experiment.seed), indent=2))
            self.write_text("config.yaml", dump_experiment(experiment))
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror}). Choose another with --run.") from error
        except RunError as error:
            raise RunError(f"{self.path} cannot be written: {error.__cause__}. Choose another with --run.") from error

    def experiment(self) -> Experiment:
        """The experiment of an existing run.

        Raises:
            RunError: there is no run.
        """
        if not self.config_file.exists():
            raise RunError(
                f"{self.path} holds no run: there is no {self.config_file.name}. Start one with `hdc-keras pretrain`."
            )
        return load_experiment(self.config_file)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.checkpoint_folder.glob("step-*.keras"))

    def save_checkpoint(self, model: Any, step: int, keep: int) -> Path:
        """Save the model with its optimizer and all its state, then remove all but the newest `keep` checkpoints.

        Raises:
            RunError: it cannot be written; the checkpoints that were there still are.
        """
        final = self.checkpoint_folder / f"step-{step:09d}.keras"
        temporary = self.checkpoint_folder / f".{final.stem}.{os.getpid()}.keras"
        try:
            model.save(temporary)
            _to_disk(temporary)
            temporary.replace(final)
            _to_disk(final.parent)
        except OSError as error:
            raise self.unwritable(final, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        for old in self.checkpoints()[:-keep]:
            old.unlink()
        return final

    def remove_unfinished(self) -> None:
        """Remove what a killed process of this run has left half-written."""
        for file in self.checkpoint_folder.glob(".*.keras"):
            file.unlink(missing_ok=True)

    def keep_best(self, checkpoint: Path, by: str, score: float) -> None:
        """Keep a copy of `checkpoint` as the best, if it is. What kNN says counts for more than any loss.

        Args:
            checkpoint: a saved checkpoint.
            by: "knn" or "loss".
            score: greater is better.
        """
        note = self.path / _BEST_NOTE
        try:
            held = json.loads(note.read_text()) if note.exists() and self.best_checkpoint.exists() else None
        except ValueError:
            held = None
        if held and (held["by"] == "knn", held["score"]) >= (by == "knn", score):
            return
        temporary = self.checkpoint_folder / f".best.{os.getpid()}.keras"
        try:
            try:
                os.link(checkpoint, temporary)  # takes no room; checkpoints are never written twice
            except OSError:
                shutil.copyfile(checkpoint, temporary)
            temporary.replace(self.best_checkpoint)
        except OSError as error:
            raise self.unwritable(self.best_checkpoint, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        self.write_text(_BEST_NOTE, json.dumps({"by": by, "score": score, "checkpoint": checkpoint.stem}))

    def load_checkpoint(
        self, compiled: bool = False, best: bool = False, warn: Callable[[str], None] | None = None
    ) -> tuple[Any, Path]:
        """A checkpoint's model, and its file: the newest that can be read, or the best.

        Args:
            compiled: with its optimizer, to train on.
            best: the best one (see `keep_best`).
            warn: told of every damaged checkpoint that is passed over.

        Raises:
            RunError: there is none, all are damaged, or it is of another architecture than the run's config says.
        """
        if best and not self.best_checkpoint.exists():
            raise RunError(f"{self.path} has no best checkpoint yet: none was saved.")
        if not best and not self.checkpoints():
            raise RunError(f"{self.checkpoint_folder} holds no checkpoint: the run ended before the first was saved.")
        damaged = []
        for file in [self.best_checkpoint] if best else self.checkpoints()[::-1]:
            try:
                return self._load(file, compiled), file
            except _DamagedError as error:
                damaged.append(str(error))
                if warn:
                    warn(f"{error}; passed over")
        raise RunError("; ".join(damaged))

    def _load(self, file: Path, compiled: bool) -> Any:
        import keras

        import hdc_keras.model  # noqa: F401, registers what a checkpoint is made of

        try:
            model = keras.models.load_model(file, compile=compiled)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _DamagedError(f"{file} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        self.check_model(model, file)
        return model

    def check_model(self, model: Any, file: Path) -> None:
        """Raises `RunError` when a checkpoint's model is not the one that the config describes."""
        from hdc_keras.model import HDC

        experiment = self.experiment()
        wanted = {
            "backbone": experiment.model.backbone,
            "contrast": experiment.contrast,
            "views": experiment.views,
        }
        found = {}
        if isinstance(model, HDC):
            found = {"backbone": model.backbone.name, "contrast": model.contrast, "views": model.views}
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            raise RunError(
                f"{file} is of another architecture than {self.config_file} describes.\n  "
                + "\n  ".join(f"{key}: config has {wanted[key]}; checkpoint has {found.get(key)}" for key in different)
                + "\nPut back the checkpoint or the config that belongs here."
            )

    def unwritable(self, file: Path, error: OSError) -> RunError:
        """The error that says so, and what to do."""
        return RunError(
            f"{file} cannot be written ({error.strerror or error}); what was saved before is still there. Free some "
            f"space or make the folder writable, then: hdc-keras pretrain --run {self.path} --resume"
        )

    def write_text(self, name: str, text: str) -> Path:
        """Write a file under the run directory, whole or not at all."""
        return self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file under the run directory, whole or not at all. Raises `RunError` when it cannot be written."""
        file = self.path / name
        try:
            write_whole(file, content)
        except OSError as error:
            raise self.unwritable(file, error) from error
        return file

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write rows as CSV; columns are the union of their keys, in order of appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return self.write_text(name, text.getvalue())

    def read_metrics(self) -> list[dict[str, str]]:
        """The lines of `metrics.csv`; empty before the first epoch."""
        if not self.metrics_file.exists():
            return []
        with self.metrics_file.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


class _DamagedError(RunError):
    """A checkpoint that cannot be read."""


def _to_disk(path: Path) -> None:
    """Have the system write what it still holds in memory of a file or folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def describe_environment(seed: int) -> dict[str, Any]:
    """Versions, device, commit and seed: what a result may depend on."""
    import keras

    from hdc_keras.devices import list_devices

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "devices": list_devices(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        "packages": versions,
        "commit": _commit(),
        "command": sys.argv,
        "seed": seed,
    }


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _commit() -> str | None:
    """Commit of the checkout that the package runs from, if it does."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    asked = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or None
