"""The job of `hdc-keras finetune`: make a classifier from a pretrained network and labelled videos."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hdc_keras.classification.directory import FORMAT, ClassifierDirectory, Facts
from hdc_keras.classification.interval import share_interval
from hdc_keras.classification.linear_head import balanced_weights, fit_head
from hdc_keras.classification.network import SCORES, ClassNetwork
from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import frame_store
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.features.store import FeatureStore, digest_of_weights, identity
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.files import replacing_stream
from hdc_keras.finetuning.classifier import VideoClassifier
from hdc_keras.finetuning.job import (
    ClassifierOptions,
    FineTuningJob,
    LinearHead,
    directory_of,
    fine_tune,
    new_classifier,
)
from hdc_keras.finetuning.recipes import FineTuning
from hdc_keras.finetuning.validation_split import hold_out
from hdc_keras.model import HDC
from hdc_keras.probes.protocol import mean_class_accuracy
from hdc_keras.runs.videos import seen_in_pretraining
from hdc_keras.version import __version__

# (description of the current task, items done, total items).
Progress = Callable[[str, int, int], None]
Method = Literal["auto", "frozen", "whole"]

# All of these are our choice, made on the Weizmann set.
VALIDATION = 0.2
# Few labelled videos are visited often, and many for a few epochs.
_STEPS, _LEAST_EPOCHS = 300, 10
# Training ends when the validation loss has not fallen for this share of all epochs.
_PATIENCE = 0.3
_RATE_OF_PRETRAINED, _RATE_FROM_SCRATCH = 3e-4, 1e-3
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
# Clips, crops and epochs are replaced by those of the run and of the videos.
_RECIPE = FineTuning(
    version=1,
    source="our choice",
    frames=16,
    stride=1,
    size=112,
    epochs=_LEAST_EPOCHS,
    batch_size=16,
    optimizer="adam",
    learning_rate=_RATE_OF_PRETRAINED,
    schedule="cosine",
    averaged="softmax",
    crop=(0.4, 1.0),
    weight_decay=1e-4,
    views={"flip": 0.5, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "fade_static": 0.0},
    validation=VALIDATION,
)
# Settings that a classifier does not depend on.
_OF_NO_MATTER = {
    "data": {"workers", "cache_gb", "max_failed_share"},
    "evaluate": {"seeds", "batch_size", "knn_neighbours", "knn_temperature", "recall_at", "linear_l2"},
}


@dataclass(frozen=True)
class Request:
    """What a classifier is made from.

    Attributes:
        model: the network.
        is_pretrained: whether it was pretrained; if not, the whole network is trained from random weights.
        experiment: defines clips, precision and devices. Its `data` section names the labelled videos.
        records: the labelled videos, with splits. Test videos are only for the score.
        column: the label column to predict.
        method: "frozen" for a linear classifier on the features as they are, "whole" to train the whole network too,
            or "auto" for what does better on held-out training videos.
        run: the run that the network is from.
        checkpoint: file of the weights.
        weights_sha256: SHA-256 of that file when it was loaded.
    """

    model: HDC
    is_pretrained: bool
    experiment: Experiment
    records: Sequence[VideoRecord]
    column: str
    method: Method
    run: Path | None = None
    checkpoint: str | None = None
    weights_sha256: str | None = None

    def digest(self) -> str:
        """SHA-256 of everything that the classifier depends on."""
        videos = sorted([*identity(one), one.labels[self.column], one.group, one.split] for one in self.records)
        sections = {"data", "views", "model", "evaluate", "seed"}
        config = self.experiment.model_dump(mode="json", include=sections, exclude=_OF_NO_MATTER)
        weights = digest_of_weights(self.model) if self.is_pretrained else None
        levels, train = self.model.contrast_config.used_levels, self.experiment.train
        facts = [FORMAT, config, videos, self.column, self.method, weights, levels, train.precision, train.batch_norm]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def make_classifier(request: Request, folder: Path, progress: Progress | None = None) -> Facts:
    """Make a classifier, score it on the test videos, and write it to a folder.

    A fifth of the training videos is held out. A linear classifier on frozen features starts it; training of the whole
    network, with augmentation, goes on from there. The trained network is the classifier if it is better on the videos
    held out by more than a standard error, because its epoch is chosen by the same videos. Otherwise the frozen one is,
    fitted again to all training videos.

    After an interruption, the same call goes on. If the classifier is finished, nothing is done.

    Args:
        request: what to make it from.
        folder: the folder, as of `ClassifierDirectory`.
        progress: called with (description of the current task, items done, total items).

    Returns:
        What is known about the classifier, as in `classifier.json`.

    Raises:
        ConfigError: the batch cannot be divided among the devices.
        DataError: too few videos have labels, or too many cannot be decoded.
        RunError: the folder holds another classifier, another process makes one there, or a file cannot be written.
        StoppedError: a signal stopped training; a checkpoint has been saved.
        TrainingError: the loss was non-finite.
    """
    directory = ClassifierDirectory(folder)
    with directory.making(request.digest()) as finished:
        return directory.facts() if finished else _Making(request, directory, progress).make()


@dataclass(frozen=True)
class _Chosen:
    """The classifier that was chosen.

    Attributes:
        way: "frozen" or "whole".
        model: the network.
        train: the videos that it was fitted to or trained on.
        validation: the videos that were held out to choose by. A frozen way is fitted to them in the end.
        candidates: cross-entropy and accuracy of each way on the validation videos.
        metrics: metrics of the training by epoch, if there was one.
        note: why nothing could be chosen; empty if it could, or if the way was asked for.
    """

    way: str
    model: VideoClassifier
    train: list[VideoRecord]
    validation: list[VideoRecord]
    candidates: dict[str, dict[str, float]]
    metrics: Path | None = None
    note: str = ""


class _Making:
    """The steps of `make_classifier`, and what they share."""

    def __init__(self, request: Request, directory: ClassifierDirectory, progress: Progress | None):
        self.request = request
        self.directory = directory
        self.progress = progress
        self.experiment, self.column = request.experiment, request.column
        self.frames: FrameStore = frame_store(self.experiment)
        self.levels = request.model.contrast_config.used_levels
        self.training = [one for one in request.records if one.split != "test"]
        self.test = [one for one in request.records if one.split == "test"]
        self.classes = sorted({one.labels[self.column] for one in self.training})
        self.failed: dict[str, str] = {}

    def make(self) -> Facts:
        """Make the classifier, write its folder, and return what is known about it."""
        chosen = self._choose()
        scores = self._scores(chosen.model, self.test, "scoring the test videos")
        if not scores.records:
            raise DataError("none of the test videos can be decoded, so the classifier cannot be scored.")
        answers = self._answers(scores)
        evaluate = self.experiment.evaluate
        facts = {
            "format": FORMAT,
            "name": self.directory.path.resolve().name,
            "classes": self.classes,
            "column": self.column,
            "chosen": chosen.way,
            "candidates": chosen.candidates,
            "note": chosen.note,
            "levels": list(self.levels),
            "pretrained": self.request.is_pretrained,
            "run": str(self.request.run.resolve()) if self.request.run else None,
            "checkpoint": self.request.checkpoint,
            "weights_sha256": self.request.weights_sha256,
            "dataset": self.experiment.data.path or "moving-shapes",
            "videos": {
                "training": self._counts(chosen.train),
                "validation": self._counts(chosen.validation),
                "test": self._counts(self.test),
            },
            "test": self._figures(answers) | {"clips": evaluate.clips, "crops": evaluate.crops},
            "untrained_classes": self._untrained_classes(chosen.train + chosen.validation),
            "seen_in_pretraining": seen_in_pretraining(self.request.run, self.test) if self.request.run else None,
            "failed": self.failed,
            "hdc_keras_version": __version__,
            "request_sha256": self.request.digest(),
        }
        self.directory.write(chosen.model, self.experiment, facts, answers, chosen.metrics)
        return facts

    def _choose(self) -> _Chosen:
        method: Method = self.request.method if self.request.is_pretrained else "whole"
        if method == "frozen":
            return self._frozen("")
        train, validation = hold_out(self.training, VALIDATION, self.column, self.experiment.seed)
        if method == "auto" and len(_groups(validation)) < 2:
            return self._frozen(
                "There are too few groups of videos to hold two of them out, so the network was not trained. "
                "--method whole trains it."
            )
        head = self._kept_head(train) if self.request.is_pretrained else None
        job = self._job(train, validation, head)
        folder = self.directory.work_folder / "training"
        self.failed |= fine_tune(job, folder, self.frames, self.progress).training_failed
        trained = directory_of(job, folder)
        whole = trained.load_classifier()
        models = {"whole": whole} if head is None else {"frozen": new_classifier(job, self.experiment), "whole": whole}
        found = {name: self._validated(name, model, validation) for name, model in models.items() if validation}
        candidates = {name: one.summary() for name, one in found.items()}
        if method == "auto" and not is_clearly_lower(found["whole"], found["frozen"]):
            model = self._frozen("").model
            return _Chosen("frozen", model, train, validation, candidates, trained.metrics_file)
        note = "" if validation else "No videos could be held out, so the last epoch of the training is used."
        return _Chosen("whole", whole, train, validation, candidates, trained.metrics_file, note)

    def _frozen(self, note: str) -> _Chosen:
        """A linear classifier on the frozen features of all training videos."""
        model = new_classifier(self._job(self.training, [], self._head(self.training)), self.experiment)
        return _Chosen("frozen", model, self.training, [], {}, None, note)

    def _kept_head(self, records: list[VideoRecord]) -> LinearHead:
        """The head that training starts from. It is kept: another processor may fit a slightly different one."""
        file = self.directory.work_folder / "head.npz"
        if not file.exists():
            head = self._head(records)
            with replacing_stream(file) as stream:
                np.savez(stream, kernel=head.kernel, bias=head.bias)
        with np.load(file) as kept:
            return LinearHead(kept["kernel"], kept["bias"])

    def _head(self, records: list[VideoRecord]) -> LinearHead:
        encoder = ClipEncoder(self.request.model, self.experiment.data.decode_size, self.experiment.evaluate.crops)
        features = self._extracted(encoder, self.training, "features").select(records)
        labels = [one.labels[self.column] for one in features.records]
        if len(set(labels)) < 2:
            raise DataError("fewer than two classes have a training video that can be decoded.")
        values = np.concatenate([features.arrays[level] for level in self.levels], axis=1)
        return fit_head(values, labels, [_group(one) for one in features.records], self.classes, _PENALTIES)

    def _job(self, train: list[VideoRecord], validation: list[VideoRecord], head: LinearHead | None) -> FineTuningJob:
        pretrained = self.request.is_pretrained
        size = min(self.experiment.evaluate.finetune_batch_size or _RECIPE.batch_size, len(train))
        epochs = max(_LEAST_EPOCHS, math.ceil(_STEPS / max(1, len(train) // size)))
        recipe = replace(
            _RECIPE,
            learning_rate=_RATE_OF_PRETRAINED if pretrained else _RATE_FROM_SCRATCH,
            crop=self.experiment.views.crop_area,
            epochs=epochs,
        ).applied(self.experiment)
        return FineTuningJob(
            title="training",
            recipe=recipe.fitted(len(train), bool(validation)),
            backbone=self.request.model.backbone if pretrained else None,
            experiment=self.experiment,
            train=train,
            validation=validation,
            test=[],
            column=self.column,
            seed=self.experiment.seed,
            options=ClassifierOptions(
                tuple(self.levels), head, is_balanced=True, patience=math.ceil(_PATIENCE * recipe.epochs)
            ),
        )

    def _validated(self, name: str, model: VideoClassifier, validation: list[VideoRecord]) -> "Validated":
        scores = self._scores(model, validation, f"validation, {name}")
        if not scores.records:
            raise DataError("none of the videos that were held out can be decoded, so nothing can be chosen by them.")
        labels = [one.labels[self.column] for one in scores.records]
        columns = [self.classes.index(label) for label in labels]
        of_label = scores.arrays[SCORES][np.arange(len(columns)), columns]
        return Validated(
            -np.log(np.maximum(of_label, 1e-7)) * balanced_weights(np.array(labels)),
            scores.arrays[SCORES].argmax(axis=1) == columns,
            [_group(one) for one in scores.records],
        )

    def _scores(self, model: VideoClassifier, records: Sequence[VideoRecord], title: str) -> VideoFeatures:
        network = ClassNetwork(model, self.experiment.data.decode_size, self.experiment.evaluate.crops)
        return self._extracted(network, records, title)

    def _extracted(self, network: Any, records: Sequence[VideoRecord], title: str) -> VideoFeatures:
        store = FeatureStore(self.directory.work_folder / "features", network, self.experiment)
        report = partial(self.progress, title) if self.progress else None
        found = extract_features(network, records, self.experiment, self.frames, report, store)
        self.failed |= found.causes
        return found

    def _answers(self, scores: VideoFeatures) -> list[dict[str, Any]]:
        rows = []
        for record, values in zip(scores.records, scores.arrays[SCORES], strict=True):
            best = int(values.argmax())
            rows.append(
                {
                    "video_id": record.video_id,
                    "file": record.path,
                    "group": record.group or "",
                    "label": record.labels[self.column],
                    "predicted": self.classes[best],
                    "score": f"{values[best]:.4f}",
                }
            )
        return rows

    def _figures(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        labels, predicted, groups = (
            [row["label"] for row in answers],
            [row["predicted"] for row in answers],
            [row["group"] or row["video_id"] for row in answers],
        )
        is_right = [label == other for label, other in zip(labels, predicted, strict=True)]
        confusions: dict[str, Counter[str]] = {}
        for label, other in zip(labels, predicted, strict=True):
            confusions.setdefault(label, Counter())[other] += 1
        return {
            "videos": len(answers),
            "groups": len(set(groups)),
            "top1": float(np.mean(is_right)),
            "interval": list(share_interval(is_right, groups)),
            "mean_class_accuracy": mean_class_accuracy(predicted, labels),
            "chance": max(Counter(labels).values()) / len(labels),
            "confusions": {label: dict(sorted(counts.items())) for label, counts in sorted(confusions.items())},
        }

    def _untrained_classes(self, training: Sequence[VideoRecord]) -> dict[str, int]:
        """Classes without a training video that can be decoded, with the number of their test videos."""
        trained = self._counts(training)["by_class"]
        tested = self._counts(self.test)["by_class"]
        names = sorted(({*self.classes} | tested.keys()) - trained.keys())
        return {name: tested.get(name, 0) for name in names}

    def _counts(self, records: Sequence[VideoRecord]) -> dict[str, Any]:
        """How many of the videos could be decoded, in how many groups, and of which classes."""
        decoded = [one for one in records if one.path not in self.failed]
        return {
            "videos": len(decoded),
            "groups": len(_groups(decoded)),
            "by_class": dict(sorted(Counter(one.labels[self.column] for one in decoded).items())),
        }


@dataclass(frozen=True)
class Validated:
    """How one way does on the validation videos.

    Attributes:
        losses: (videos,) cross-entropies, weighted so that classes count the same.
        is_right: (videos,) whether the answer is right.
        groups: group of each video.
    """

    losses: np.ndarray
    is_right: np.ndarray
    groups: list[str]

    def summary(self) -> dict[str, float]:
        """The means, by name."""
        return {"loss": float(self.losses.mean()), "top1": float(self.is_right.mean())}


def is_clearly_lower(one: Validated, other: Validated) -> bool:
    """Whether the mean loss of one way is lower than another's, on the same videos, by more than a standard error.

    The error is over groups, whose videos are right or wrong together. With one group it is unknown.
    """
    gaps, rows = other.losses - one.losses, np.unique(other.groups, return_inverse=True)[1]
    count = int(rows.max()) + 1
    if count < 2:
        return False
    sums = np.bincount(rows, gaps - gaps.mean(), count)
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(gaps)
    return float(gaps.mean()) > error


def _group(record: VideoRecord) -> str:
    return record.group or record.video_id


def _groups(records: Sequence[VideoRecord]) -> set[str]:
    return {_group(record) for record in records}
