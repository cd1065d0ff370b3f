"""The folder of one fine-tuning: a run directory whose checkpoints hold a classifier, and its final scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import RunError, WeightsError
from hdc_keras.files import remove_leftovers, replacing, replacing_stream
from hdc_keras.finetuning.classifier import VideoClassifier
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.model_files import read_model


@dataclass(frozen=True)
class Scores:
    """The scores that a fine-tuned classifier gives the test videos.

    Attributes:
        records: the test videos that could be decoded.
        scores: (videos, classes) logits or softmax, averaged over views.
        failed: cause by path of every test video that could not be decoded.
        training_failed: the same for training and validation videos.
    """

    records: list[VideoRecord]
    scores: np.ndarray
    failed: dict[str, str]
    training_failed: dict[str, str]


class FineTuningDirectory(RunDirectory):
    """The folder of one fine-tuning."""

    @property
    def _is_trained(self) -> str:
        return f"{self.path} is being fine-tuned"

    def check_model(self, model: Any, file: Path) -> None:
        """Raise `RunError` if a checkpoint does not hold a `VideoClassifier`."""
        if not isinstance(model, VideoClassifier):
            raise RunError(f"{file} holds no classifier. Delete {self.path} to fine-tune again.")

    def unwritable(self, file: Path, error: OSError) -> RunError:
        """Make the error for a file that cannot be written."""
        return RunError(
            f"{file} cannot be written ({error.strerror or error}); files saved earlier are intact. Free some "
            "disk space or make the folder writable, then repeat the command."
        )

    @property
    def classifier_file(self) -> Path:
        """The classifier that the test videos were scored with."""
        return self.path / "classifier.keras"

    @property
    def scores_file(self) -> Path:
        """Scores of the test videos. It exists once the fine-tuning is finished."""
        return self.path / "scores.npz"

    def remove_unfinished(self) -> None:
        """Remove temporary files of a killed process. Call it only if no other process uses the folder."""
        remove_leftovers(self.path)
        self.checkpoints.remove_unfinished()

    def save_classifier(self, model: VideoClassifier) -> None:
        """Save the classifier. Raises `RunError` when it cannot be written."""
        self.require_lock()
        try:
            with replacing(self.classifier_file, suffix=".keras") as temporary:
                model.save(temporary)
        except OSError as error:
            raise self.unwritable(self.classifier_file, error) from error

    def load_classifier(self) -> VideoClassifier:
        """Load the classifier of a finished fine-tuning. Raises `RunError` when its file is damaged."""
        try:
            model = read_model(self.classifier_file)
        except WeightsError as error:
            raise RunError(f"{error} Or delete {self.path} to fine-tune again.") from error
        self.check_model(model, self.classifier_file)
        return model

    def write_scores(self, scores: Scores) -> None:
        """Save the scores of the test videos. Raises `RunError` when they cannot be written."""
        note = {
            "videos": [record.video_id for record in scores.records],
            "failed": scores.failed,
            "training_failed": scores.training_failed,
        }
        self.require_lock()
        try:
            with replacing_stream(self.scores_file) as stream:
                np.savez(stream, note=np.array(json.dumps(note)), scores=scores.scores)
        except OSError as error:
            raise self.unwritable(self.scores_file, error) from error

    def read_scores(self, test: Sequence[VideoRecord]) -> Scores | None:
        """Read the scores of the test videos; `None` if the fine-tuning is not finished."""
        if not self.scores_file.exists():
            return None
        by_id = {record.video_id: record for record in test}
        with np.load(self.scores_file) as stored:
            note = json.loads(str(stored["note"]))
            records = [by_id[video_id] for video_id in note["videos"]]
            return Scores(records, stored["scores"], note["failed"], note["training_failed"])
