"""A run directory: all that is needed to repeat, resume, evaluate and export a run."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment, dump_experiment, load_experiment
from hdc_keras.errors import RunError
from hdc_keras.files import write_bytes
from hdc_keras.runs.checkpoints import Checkpoints


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
    def checkpoints(self) -> Checkpoints:
        """Its checkpoints."""
        return Checkpoints(self.path, self.check_model, self.unwritable)

    @property
    def event_folder(self) -> Path:
        """TensorBoard events."""
        return self.path / "events"

    @property
    def feature_folder(self) -> Path:
        """Features that evaluation has extracted, kept for the next time."""
        return self.path / "features"

    @property
    def fine_tuning_folder(self) -> Path:
        """The trainings of fine-tuning protocols, a folder each."""
        return self.path / "fine-tuning"

    @property
    def metrics_file(self) -> Path:
        """One line per epoch."""
        return self.path / "metrics.csv"

    def check_free(self) -> None:
        """Refuse a folder that a new run must not touch. A run without a checkpoint holds nothing to lose.

        Raises:
            RunError: it holds a run, or something else.
        """
        if self.checkpoints.files():
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
        from hdc_keras.runs.environment import describe_environment

        self.check_free()
        try:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
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
            found = {"backbone": model.backbone.name, "contrast": model.contrast_config, "views": model.views_config}
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
            write_bytes(file, content)
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
