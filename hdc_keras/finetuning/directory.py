"""The folder of one fine-tuning: a run directory whose checkpoints hold a classifier, and what it came to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import RunError
from hdc_keras.finetuning.classifier import VideoClassifier
from hdc_keras.runs.directory import RunDirectory


@dataclass(frozen=True)
class Scores:
    """What a fine-tuned network says of the test videos.

    Attributes:
        records: the test videos that decoded.
        scores: (videos, classes) mean over views of logits or softmax.
        failed: reason by path of every test video that did not decode.
        training_failed: the same of the training and validation videos.
    """

    records: list[VideoRecord]
    scores: np.ndarray
    failed: dict[str, str]
    training_failed: dict[str, str]


class FineTuningDirectory(RunDirectory):
    """The folder of one training: as a run directory, but its checkpoints hold a `VideoClassifier`."""

    def check_model(self, model: Any, file: Path) -> None:
        """Raises `RunError` when a checkpoint holds something else."""
        if not isinstance(model, VideoClassifier):
            raise RunError(f"{file} holds no classifier. Remove {self.path} to train it anew.")

    def unwritable(self, file: Path, error: OSError) -> RunError:
        """The error that says so, and what to do."""
        return RunError(
            f"{file} cannot be written ({error.strerror or error}); what was saved before is still there. Free some "
            "space or make the folder writable, and repeat the command."
        )

    @property
    def classifier_file(self) -> Path:
        """The network as it was when it was judged."""
        return self.path / "classifier.keras"

    @property
    def scores_file(self) -> Path:
        """What it said of the test videos; there when all is done."""
        return self.path / "scores.npz"

    def save_classifier(self, model: VideoClassifier) -> None:
        """Keep the network, whole or not at all."""
        temporary = self.path / f".{self.classifier_file.name}"
        model.save(temporary)
        temporary.replace(self.classifier_file)

    def write_scores(self, scores: Scores) -> None:
        """Keep what was said, whole or not at all."""
        note = {
            "videos": [record.video_id for record in scores.records],
            "failed": scores.failed,
            "training_failed": scores.training_failed,
        }
        temporary = self.path / f".{self.scores_file.name}"
        with temporary.open("wb") as stream:
            np.savez(stream, note=np.array(json.dumps(note)), scores=scores.scores)
        temporary.replace(self.scores_file)

    def read_scores(self, test: Sequence[VideoRecord]) -> Scores | None:
        """What was said of the test videos; `None` before all is done."""
        if not self.scores_file.exists():
            return None
        by_id = {record.video_id: record for record in test}
        with np.load(self.scores_file) as stored:
            note = json.loads(str(stored["note"]))
            records = [by_id[video_id] for video_id in note["videos"]]
            return Scores(records, stored["scores"], note["failed"], note["training_failed"])
