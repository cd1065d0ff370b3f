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
from hdc_keras.errors import RunError, WeightsError
from hdc_keras.files import remove_leftovers, replacing, require_creatable, write_text
from hdc_keras.locks import lock_file, sole_use

if TYPE_CHECKING:  # loads a backend
    from hdc_keras.finetuning.classifier import VideoClassifier

Facts = dict[str, Any]


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
        return self.work_folder / "request.json"

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
        """Lock the folder while a classifier is made. What is left of another, unfinished one is removed.

        Args:
            request: digest of what the classifier is made from.

        Returns:
            Whether it is finished already.

        Raises:
            RunError: another process makes one there, or the folder holds another one, or cannot be written.
        """
        self.check_free()
        with sole_use(self._lock, f"{self.path} is being made"):
            if self.facts_file.exists():
                if self.facts().get("request_sha256") != request:
                    raise RunError(
                        f"{self.path} holds another classifier, made from other videos, weights or settings. It is "
                        "left unchanged. Choose another folder with --out."
                    )
                shutil.rmtree(self.work_folder, ignore_errors=True)
                yield True
                return
            try:
                if not self.request_file.exists() or self.request_file.read_text(encoding="utf-8") != request:
                    shutil.rmtree(self.work_folder, ignore_errors=True)
                    write_text(self.request_file, request)
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
            return {**facts, "classes": list(facts["classes"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.facts_file} is damaged ({error}). Restore it, or make the classifier again."
            ) from error

    def experiment(self) -> Experiment:
        """The experiment that the classifier was made with."""
        return load_experiment(self.config_file)

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
