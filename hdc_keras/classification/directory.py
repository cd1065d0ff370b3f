"""The folder of a classifier: the network, its config, and what is known about it.

Reading what is known loads no backend.
"""

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdc_keras.config import Experiment, dump_experiment, load_experiment
from hdc_keras.errors import ConfigError, RunError, WeightsError
from hdc_keras.files import remove_leftovers, replacing, require_creatable, write_text
from hdc_keras.locks import lock_file, sole_use

if TYPE_CHECKING:  # loads a backend
    from hdc_keras.finetuning.classifier import VideoClassifier

Facts = dict[str, Any]

# Increase this whenever older facts or networks can no longer be used.
FORMAT = 1
_KINDS = {
    **dict.fromkeys(("candidates", "videos", "test", "failed", "untrained_classes"), dict),
    **dict.fromkeys(("column", "chosen", "note"), str),
    "classes": list,
}
_TEST_KEYS = {"videos", "groups", "top1", "interval", "mean_class_accuracy", "chance", "clips", "crops"}
_ANSWER_KEYS = {"video_id", "label", "predicted"}


class ClassifierDirectory:
    """Paths and files of one classifier. All files are written atomically; `classifier.json` is the last one.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def facts_file(self) -> Path:
        """What is known about the classifier, as JSON. It exists once the classifier is finished."""
        return self.path / "classifier.json"

    @property
    def model_file(self) -> Path:
        """The `VideoClassifier`."""
        return self.path / "classifier.keras"

    @property
    def config_file(self) -> Path:
        """The experiment, with every key."""
        return self.path / "config.yaml"

    @property
    def test_file(self) -> Path:
        """The answer for each test video, as CSV."""
        return self.path / "test-videos.csv"

    @property
    def training_file(self) -> Path:
        """Metrics of the training by epoch, as CSV; there is none if no network was trained."""
        return self.path / "training.csv"

    @property
    def page_file(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    @property
    def work_folder(self) -> Path:
        """Features and checkpoints while the classifier is made."""
        return self.path / "unfinished"

    @property
    def request_file(self) -> Path:
        """What is being made, while it is being made."""
        return self.work_folder / "request.txt"

    def check_free(self) -> None:
        """Raise `RunError` for a folder that cannot be written, or that holds something else than a classifier."""
        try:
            require_creatable(self.path)
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written ({error.strerror or error}). Choose another with --out."
            ) from error
        is_ours = self.facts_file.exists() or self.request_file.exists()
        if not is_ours and (self.path.is_file() or (self.path.is_dir() and self._holds_files())):
            raise RunError(f"{self.path} exists and holds no classifier. Choose a new or empty folder with --out.")

    def _holds_files(self) -> bool:
        return any(file != lock_file(self._lock) for file in self.path.iterdir())

    @property
    def _lock(self) -> Path:
        return self.path / "classifier"

    @contextmanager
    def making(self, request: str) -> Iterator[bool]:
        """Lock the folder while a classifier is made.

        Args:
            request: digest of what the classifier is made from.

        Returns:
            Whether it is finished already.

        Raises:
            RunError: another process makes one there; or the folder holds another one, finished or not, or a damaged
                one, or cannot be written.
        """
        self.check_free()
        with sole_use(self._lock, f"{self.path} is being made"):
            if self.facts_file.exists():
                if self.facts().get("request_sha256") != request:
                    raise RunError(
                        f"{self.path} holds another classifier, made from other videos, weights or settings. It is "
                        "left unchanged. Choose another folder with --out."
                    )
                self._require_intact()
                shutil.rmtree(self.work_folder, ignore_errors=True)
                yield True
                return
            try:
                if not self.request_file.exists():
                    write_text(self.request_file, request)
                elif self.request_file.read_text(encoding="utf-8") != request:
                    raise RunError(
                        f"{self.path} holds the unfinished work of another command, with other videos, weights or "
                        "settings. Repeat that command, or choose another folder with --out, or delete this one."
                    )
                remove_leftovers(self.path)
            except OSError as error:
                raise self._unwritable(error) from error
            yield False

    def facts(self) -> Facts:
        """What is known about the classifier.

        Raises:
            RunError: the folder holds no finished classifier, or the file is damaged.
        """
        if not self.facts_file.exists():
            state = "is not finished: repeat `hdc-keras finetune`" if self.work_folder.exists() else "does not exist"
            raise RunError(
                f"{self.path}: expected a folder that `hdc-keras finetune` made, but {self.facts_file.name} {state}."
            )
        try:
            facts: Facts = json.loads(self.facts_file.read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise RunError(
                    f"{self.path}: the classifier was made by another version of hdc-keras. Make it again in another "
                    "folder."
                )
            for name, kind in _KINDS.items():
                if not isinstance(facts[name], kind):
                    raise ValueError(f"{name} is no {kind.__name__}")
            missing = _TEST_KEYS - facts["test"].keys()
            if missing:
                raise KeyError(f"test.{min(missing)}")
            return facts
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(self.facts_file, str(error)) from error

    def experiment(self) -> Experiment:
        """The experiment that the classifier was made with. Raises `RunError` if there is none."""
        if not self.config_file.exists():
            raise self._damaged(self.config_file, "it is missing")
        return load_experiment(self.config_file)

    def require_settings_of(self, experiment: Experiment) -> None:
        """Refuse settings that change more than how videos are read.

        Raises:
            ConfigError: another section than `data` and `evaluate` differs.
        """
        own, now = (one.model_dump() for one in (self.experiment(), experiment))
        for section in own.keys() - {"data", "evaluate", "name"}:
            if own[section] != now[section]:
                changed = section
                if isinstance(own[section], dict):
                    changed += "." + next(key for key in own[section] if own[section][key] != now[section][key])
                raise ConfigError(
                    f"{changed}: {self.path} was made with another value, and cannot be changed now. Only `data` and "
                    "`evaluate` can be set here."
                )

    def answers(self) -> list[dict[str, str]]:
        """The answer for each test video. Raises `RunError` if the file is missing or damaged."""
        try:
            with self.test_file.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            for row in rows:
                float(row["score"])
                if None in row.values() or not row.keys() >= _ANSWER_KEYS:
                    raise ValueError("a line has too few values")
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise self._damaged(self.test_file, str(error)) from error
        return rows

    def _require_intact(self) -> None:
        """Raise `RunError` if a file of a finished classifier is missing or damaged. Needs no backend."""
        from hdc_keras.runs.model_files import damage_of

        self.experiment()
        self.answers()
        problem = damage_of(self.model_file) if self.model_file.exists() else "it is missing"
        if problem:
            raise self._damaged(self.model_file, problem)

    def _damaged(self, file: Path, problem: str) -> RunError:
        return RunError(
            f"{file} is damaged ({problem}). Restore it, or delete {self.path} and make the classifier again."
        )

    def load(self) -> "VideoClassifier":
        """The classifier.

        Raises:
            RunError: the folder holds no finished classifier, or its file is damaged.
        """
        from hdc_keras.finetuning.classifier import VideoClassifier
        from hdc_keras.runs.model_files import read_model

        self.facts()
        try:
            model = read_model(self.model_file)
        except WeightsError as error:
            raise RunError(str(error)) from error
        if not isinstance(model, VideoClassifier):
            raise RunError(
                f"{self.model_file} holds a {type(model).__name__}, not a classifier. Restore it from a copy."
            )
        return model

    def write(
        self,
        model: "VideoClassifier",
        experiment: Experiment,
        facts: Facts,
        answers: Sequence[Mapping[str, Any]],
        training: Path | None,
    ) -> None:
        """Write all files and remove the work folder.

        Args:
            model: the classifier.
            experiment: what it was made with.
            facts: what is known about it.
            answers: a row for each test video.
            training: metrics of its training, if it was trained.

        Raises:
            RunError: a file cannot be written.
        """
        try:
            with replacing(self.model_file, suffix=".keras") as temporary:
                model.save(temporary)
            write_text(self.config_file, dump_experiment(experiment))
            text = io.StringIO()
            writer = csv.DictWriter(text, list(answers[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(answers)
            write_text(self.test_file, text.getvalue())
            self.training_file.unlink(missing_ok=True)
            if training and training.exists():
                write_text(self.training_file, training.read_text(encoding="utf-8"))
            write_text(self.facts_file, json.dumps(facts, indent=2))
        except OSError as error:
            raise self._unwritable(error) from error
        shutil.rmtree(self.work_folder, ignore_errors=True)

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path} cannot be written ({error.strerror or error}). What was computed is kept in "
            f"{self.work_folder}. Free some space, then repeat the command."
        )
