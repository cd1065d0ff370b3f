"""A run directory: everything needed to repeat, resume, evaluate and export a run."""

import csv
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment, dump_experiment, load_experiment
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import ConfigError, RunError
from hdc_keras.files import require_creatable, require_writable, write_bytes
from hdc_keras.locks import is_held, lock_file, refusal, sole_use
from hdc_keras.runs.checkpoints import Checkpoints
from hdc_keras.runs.videos import EARLIER_VIDEOS, STARTED_CONFIG, VIDEOS, videos_before, write_videos

_TRAINING = "training"


class RunDirectory:
    """Paths and files of one run. All files are written atomically (see `hdc_keras.files`).

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._require_lock: Callable[[], None] | None = None

    @property
    def config_file(self) -> Path:
        """The experiment, with every key."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        return Checkpoints(self.path, self.check_model, self.unwritable)

    @property
    def event_folder(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "events"

    @property
    def feature_folder(self) -> Path:
        """Folder of cached features, which evaluation reuses."""
        return self.path / "features"

    @property
    def fine_tuning_folder(self) -> Path:
        """Folder of fine-tuning, with one sub-folder for each fine-tuned classifier."""
        return self.path / "fine-tuning"

    @property
    def metrics_file(self) -> Path:
        """Metrics, one row per epoch."""
        return self.path / "metrics.csv"

    def check_free(self) -> None:
        """Refuse a folder that a new run must not write to. A run that has no checkpoint yet may be replaced.

        Raises:
            RunError: the folder holds a run, is not a run directory, or cannot be written.
        """
        try:
            require_creatable(self.path)
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"{self.path} cannot be written ({reason}). Choose another with --run.") from error
        if self.checkpoints.files():
            raise RunError(
                f"{self.path} already holds a run and is left unchanged. Continue it with --resume, or choose another "
                "folder with --run."
            )
        if self.path.exists() and not self.config_file.exists() and (self.path.is_file() or self._holds_files()):
            raise RunError(f"{self.path} exists and is not a run directory. Choose a new or empty folder with --run.")

    def _holds_files(self) -> bool:
        return any(file != lock_file(self.path / _TRAINING) for file in self.path.iterdir())

    @contextmanager
    def sole_training(self, warn: Callable[[str], None] = warnings.warn) -> Iterator[None]:
        """The lock of whoever trains in the run. Reading the run needs no lock. A nested block keeps the outer lock.

        Args:
            warn: called with a message before waiting for a process that may have died elsewhere.

        Raises:
            RunError: when it is entered, if another process trains in the run.
        """
        if self._require_lock:
            yield
            return
        with sole_use(self.path / _TRAINING, self._is_trained, warn) as self._require_lock:
            try:
                yield
            finally:
                self._require_lock = None

    def require_lock(self) -> None:
        """Raise `RunError` if another process has taken over the lock of `sole_training`. Without a lock, do nothing.

        Everything that trains calls it before it writes.
        """
        if self._require_lock:
            self._require_lock()

    def require_idle(self) -> None:
        """Raise `RunError` if another process trains in the run, without locking it."""
        if is_held(self.path / _TRAINING):
            raise refusal(self.path / _TRAINING, self._is_trained)

    @property
    def _is_trained(self) -> str:
        return f"{self.path} is being trained"

    def create(self, experiment: Experiment, videos: Sequence[VideoRecord] | None = None) -> None:
        """Create the folder of a new run, with its config, its videos and a description of the environment.

        Args:
            experiment: the experiment to run.
            videos: the videos of the run with their splits, which evaluation and `--resume` read again.

        Raises:
            RunError: the folder is already in use, another process trains in it, or it cannot be written.
        """
        self.check_free()
        with self.sole_training():
            self._create(experiment, videos)

    def _create(self, experiment: Experiment, videos: Sequence[VideoRecord] | None) -> None:
        from hdc_keras.runs.environment import describe_environment

        try:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
            self.write_text("environment.json", json.dumps(describe_environment(experiment.seed), indent=2))
            for name in (VIDEOS, EARLIER_VIDEOS):  # of a run that is replaced
                (self.path / name).unlink(missing_ok=True)
            if videos is not None:
                write_videos(self.path / VIDEOS, videos)
                earlier = videos_before(experiment.model.init_from)
                if earlier:
                    write_videos(self.path / EARLIER_VIDEOS, earlier)
            self.write_text(STARTED_CONFIG, dump_experiment(experiment))
            self.write_text("config.yaml", dump_experiment(experiment))
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror}). Choose another with --run.") from error
        except RunError as error:
            raise RunError(f"{self.path} cannot be written: {error.__cause__}. Choose another with --run.") from error

    def experiment(self) -> Experiment:
        """The experiment of an existing run.

        Raises:
            RunError: the folder holds no run.
        """
        if not self.config_file.exists():
            raise RunError(
                f"{self.path} holds no run: there is no {self.config_file.name}. Start one with `hdc-keras pretrain`."
            )
        return load_experiment(self.config_file)

    def require_network_of(self, experiment: Experiment) -> None:
        """Refuse an experiment that describes another network than the one that the run has pretrained.

        Raises:
            ConfigError: a key of `model`, `views` or `contrast` was changed.
        """
        own = self.experiment()
        for section in ("model", "views", "contrast"):
            before, now = (getattr(one, section).model_dump() for one in (own, experiment))
            for key in [key for key in before if before[key] != now[key]]:
                raise ConfigError(
                    f"{section}.{key}: {self.path} was pretrained with {before[key]}, and its network cannot be "
                    f"changed now. Received: {now[key]}. Only `data`, `evaluate`, `train` and `seed` can be set here."
                )

    def check_model(self, model: Any, file: Path) -> None:
        """Raise `RunError` if the model of checkpoint `file` is not the one that the config describes."""
        from hdc_keras.model import HDC

        experiment = self.experiment()
        expected = {
            "backbone": experiment.model.backbone,
            "contrast": experiment.contrast,
            "views": experiment.views,
        }
        found = {}
        if isinstance(model, HDC):
            found = {"backbone": model.backbone.name, "contrast": model.contrast_config, "views": model.views_config}
        different = [key for key in expected if found.get(key) != expected[key]]
        if different:
            raise RunError(
                f"{file} holds a different model than {self.config_file} describes.\n  "
                + "\n  ".join(
                    f"{key}: config has {expected[key]}; checkpoint has {found.get(key)}" for key in different
                )
                + "\nRestore the checkpoint or the config that belongs to this run."
            )

    def unwritable(self, file: Path, error: OSError) -> RunError:
        """The error to raise when `file` cannot be written: what happened, and what to do."""
        return RunError(
            f"{file} cannot be written ({error.strerror or error}). Everything saved before is intact. Free some space "
            f"or make the folder writable, then repeat the command; pretraining continues with: hdc-keras pretrain "
            f"--run {self.path} --resume"
        )

    def require_writable(self, name: str) -> None:
        """Find out whether files can be written in the sub-folder `name`. Raises `RunError` if not."""
        try:
            require_writable(self.path / name)
        except OSError as error:
            raise self.unwritable(self.path / name, error) from error

    def write_text(self, name: str, text: str) -> Path:
        """Write a UTF-8 file in the run directory, atomically. Raises `RunError` if it cannot be written."""
        return self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file in the run directory, atomically. Raises `RunError` if it cannot be written."""
        self.require_lock()
        file = self.path / name
        try:
            write_bytes(file, content)
        except OSError as error:
            raise self.unwritable(file, error) from error
        return file

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write rows as CSV. The columns are all keys of the rows, in order of first appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return self.write_text(name, text.getvalue())

    def read_metrics(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv`; empty before the first epoch ends.

        Raises:
            RunError: the file is damaged.
        """
        if not self.metrics_file.exists():
            return []
        line = 1
        try:
            with self.metrics_file.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                rows = []
                for row in reader:
                    line = reader.line_num
                    int(row["epoch"])
                    for value in row.values():
                        float(value or 0)
                    rows.append(row)
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise RunError(
                f"{self.metrics_file}, line {line}: expected numbers under a header with `epoch`, as the run wrote "
                f"them ({error}). Restore the file, or delete it to go on without these metrics."
            ) from error
        return rows
