"""A run directory: all that is needed to repeat, resume, evaluate and export a run."""

import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment, dump_experiment, load_experiment
from hdc_keras.errors import RunError

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
        """Save the model with its optimizer and all its state, then remove all but the newest `keep` checkpoints."""
        final = self.checkpoint_folder / f"step-{step:09d}.keras"
        temporary = self.checkpoint_folder / f".{final.stem}.{os.getpid()}.keras"
        model.save(temporary)
        temporary.replace(final)
        for old in self.checkpoints()[:-keep]:
            old.unlink()
        return final

    def load_checkpoint(self, compiled: bool = False) -> tuple[Any, Path]:
        """The newest checkpoint's model, and its file.

        Raises:
            RunError: there is none, it is damaged, or it is of another architecture than the run's config says.
        """
        import keras

        from hdc_keras.model import HDC

        if not self.checkpoints():
            raise RunError(f"{self.checkpoint_folder} holds no checkpoint: the run ended before the first was saved.")
        file = self.checkpoints()[-1]
        try:
            model = keras.models.load_model(file, compile=compiled)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
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
        return model, file

    def write_text(self, name: str, text: str) -> Path:
        """Write a file under the run directory, whole or not at all."""
        return self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file under the run directory, whole or not at all."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(file)
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
