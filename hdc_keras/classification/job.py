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

from hdc_keras.classification.directory import ClassifierDirectory, Facts
from hdc_keras.classification.interval import share_interval
from hdc_keras.classification.linear_head import fit_head
from hdc_keras.classification.network import SCORES, ClassNetwork
from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import frame_store
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError, RunError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.features.store import FeatureStore, digest_of_weights, identity
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.finetuning.classifier import VideoClassifier
from hdc_keras.finetuning.job import FineTuningJob, LinearHead, Start, directory_of, fine_tune, new_classifier
from hdc_keras.finetuning.recipes import FineTuning
from hdc_keras.finetuning.validation_split import hold_out
from hdc_keras.model import HDC
from hdc_keras.probes.protocol import mean_class_accuracy
from hdc_keras.runs.videos import seen_in_pretraining
from hdc_keras.version import __version__

# (description of the current task, items done, total items).
Progress = Callable[[str, int, int], None]
Method = Literal["auto", "frozen", "whole"]
METHODS = ("auto", "frozen", "whole")

FORMAT = 1
# All of these are our choice, made on the Weizmann set.
VALIDATION = 0.2
# Few labelled videos are visited often, and many for a few epochs.
_STEPS, _LEAST_EPOCHS = 300, 10
# Training ends when the validation loss has not fallen for this share of all epochs.
_PATIENCE = 0.3
_RATE_OF_PRETRAINED, _RATE_FROM_SCRATCH = 3e-4, 1e-3
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
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
        config = self.experiment.model_dump(mode="json", include={"data", "views", "model", "evaluate", "seed"})
        weights = digest_of_weights(self.model) if self.is_pretrained else None
        facts = [FORMAT, config, videos, self.column, self.method, weights, self.experiment.train.precision]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def make_classifier(request: Request, folder: Path, progress: Progress | None = None) -> Facts:
    """Make a classifier, score it on the test videos, and write it to a folder.

    A fifth of the training videos is held out. A linear classifier on frozen features starts it; training of the whole
    network, with augmentation, goes on from there. The network with the lower cross-entropy on the videos held out is
    the classifier; the frozen one is then fitted again, to all training videos. The trained network must be better by
    more than a standard error, because its epoch is chosen by the same videos.

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
        RunError: the folder holds another classifier, or a file cannot be written.
        StoppedError: a signal stopped training; a checkpoint has been saved.
        TrainingError: the loss was non-finite.
    """
    return _Making(request, ClassifierDirectory(folder), progress).make()


class _Making:
    """The steps of `make_classifier`, and what they share."""

    def __init__(self, request: Request, directory: ClassifierDirectory, progress: Progress | None):
        self.request = request
        self.directory = directory
        self.progress = progress
        self.experiment, self.column = request.experiment, request.column
        self.frames: FrameStore = frame_store(self.experiment)
        self.levels = request.model.contrast_config.used_levels
        self.classes = sorted({one.labels[self.column] for one in request.records if one.split != "test"})
        self.test = [one for one in request.records if one.split == "test"]
        self.failed: dict[str, str] = {}

    def make(self) -> Facts:
        digest = self.request.digest()
        self.directory.check_free()
        if self.directory.facts_file.exists():
            facts = self.directory.facts()
            if facts.get("request_sha256") != digest:
                raise RunError(
                    f"{self.directory.path} holds another classifier, made from other videos, weights or settings. It "
                    "is left unchanged. Choose another folder with --out."
                )
            return facts
        # What is fitted to frozen features needs no videos to choose by.
        train, validation = self._all_training(), list[VideoRecord]()
        if self._method != "frozen":
            train, validation = hold_out(self.request.records, VALIDATION, self.column, self.experiment.seed)
        chosen, model, candidates, training = self._choose(train, validation)
        scores = self._scores(model, self.test, "scoring the test videos")
        if not scores.records:
            raise DataError("none of the test videos can be decoded, so the classifier cannot be scored.")
        answers = self._answers(scores)
        facts = {
            "format": FORMAT,
            "name": self.directory.path.resolve().name,
            "classes": self.classes,
            "column": self.column,
            "chosen": chosen,
            "candidates": candidates,
            "levels": list(self.levels),
            "pretrained": self.request.is_pretrained,
            "run": str(self.request.run.resolve()) if self.request.run else None,
            "checkpoint": self.request.checkpoint,
            "weights_sha256": self.request.weights_sha256,
            "dataset": self.experiment.data.path or "moving-shapes",
            "videos": {
                "training": self._counts(train),
                "validation": self._counts(validation),
                "test": self._counts(self.test),
            },
            "test": self._figures(answers, train + validation),
            "seen_in_pretraining": seen_in_pretraining(self.request.run, self.test) if self.request.run else None,
            "failed": self.failed,
            "hdc_keras_version": __version__,
            "request_sha256": digest,
        }
        self.directory.write(model, self.experiment, facts, answers, training)
        return facts

    def _choose(
        self, train: list[VideoRecord], validation: list[VideoRecord]
    ) -> tuple[str, VideoClassifier, dict[str, dict[str, float]], Path | None]:
        """Which way is chosen, its network, what each way scored on the validation videos, and the metrics file."""
        if self._method == "frozen" or (self._method == "auto" and not validation):
            # Without videos to judge by, it is what cannot overfit as much.
            return "frozen", self._frozen(train + validation), {}, None
        head = self._head(train) if self.request.is_pretrained else None
        job = self._job(train, validation, head)
        folder = self.directory.work_folder / "training"
        fine_tune(job, folder, self.frames, self.progress)
        trained = directory_of(job, folder)
        whole = trained.load_classifier()
        models = {"whole": whole} if head is None else {"frozen": new_classifier(job, self.experiment), "whole": whole}
        losses = {name: self._validated(name, model, validation) for name, model in models.items()}
        candidates = {name: {key: float(v.mean()) for key, v in one.items()} for name, one in losses.items()}
        if self._method == "auto" and not is_clearly_lower(losses["whole"]["loss"], losses["frozen"]["loss"]):
            return "frozen", self._frozen(train + validation), candidates, trained.metrics_file
        return "whole", whole, candidates, trained.metrics_file

    @property
    def _method(self) -> Method:
        return self.request.method if self.request.is_pretrained else "whole"

    def _head(self, records: list[VideoRecord]) -> LinearHead:
        encoder = ClipEncoder(self.request.model, self.experiment.data.decode_size, self.experiment.evaluate.crops)
        features = self._extracted(encoder, [*self._all_training()], "features").select(records)
        if len({one.labels[self.column] for one in features.records}) < 2:
            raise DataError("fewer than two classes have a training video that can be decoded.")
        values = np.concatenate([features.arrays[level] for level in self.levels], axis=1)
        labels = [one.labels[self.column] for one in features.records]
        groups = [one.group or one.video_id for one in features.records]
        return fit_head(values, labels, groups, self.classes, _PENALTIES)

    def _all_training(self) -> list[VideoRecord]:
        return [one for one in self.request.records if one.split != "test"]

    def _frozen(self, records: list[VideoRecord]) -> VideoClassifier:
        return new_classifier(self._job(records, [], self._head(records)), self.experiment)

    def _job(self, train: list[VideoRecord], validation: list[VideoRecord], head: LinearHead | None) -> FineTuningJob:
        views, pretrained = self.experiment.views, self.request.is_pretrained
        recipe = replace(
            _RECIPE,
            learning_rate=_RATE_OF_PRETRAINED if pretrained else _RATE_FROM_SCRATCH,
            crop=views.crop_area,
        )
        size = self.experiment.evaluate.finetune_batch_size or recipe.batch_size
        steps_per_epoch = max(1, len(train) // size)
        recipe = replace(recipe, epochs=max(_LEAST_EPOCHS, math.ceil(_STEPS / steps_per_epoch))).applied(
            self.experiment
        )
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
            start=Start(tuple(self.levels), head, is_balanced=True, patience=math.ceil(_PATIENCE * recipe.epochs)),
        )

    def _validated(self, name: str, model: VideoClassifier, validation: list[VideoRecord]) -> dict[str, np.ndarray]:
        """Cross-entropy of each validation video, and whether it is right; empty if there are none."""
        if not validation:
            return {}
        scores = self._scores(model, validation, f"validation, {name}")
        if not scores.records:
            raise DataError("none of the validation videos can be decoded, so nothing can be chosen. Use --method.")
        rows = np.arange(len(scores.records))
        columns = [self.classes.index(one.labels[self.column]) for one in scores.records]
        of_label = scores.arrays[SCORES][rows, columns]
        return {
            "loss": -np.log(np.maximum(of_label, 1e-7)),
            "top1": scores.arrays[SCORES].argmax(axis=1) == columns,
        }

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

    def _figures(self, answers: Sequence[dict[str, Any]], training: Sequence[VideoRecord]) -> dict[str, Any]:
        labels = [row["label"] for row in answers]
        predicted = [row["predicted"] for row in answers]
        is_right = [label == other for label, other in zip(labels, predicted, strict=True)]
        confusions: dict[str, Counter[str]] = {}
        for label, other in zip(labels, predicted, strict=True):
            confusions.setdefault(label, Counter())[other] += 1
        trained = Counter(one.labels[self.column] for one in training)
        return {
            "videos": len(answers),
            "groups": len({row["group"] or row["video_id"] for row in answers}),
            "top1": float(np.mean(is_right)),
            "interval": list(share_interval(is_right, [row["group"] or row["video_id"] for row in answers])),
            "mean_class_accuracy": mean_class_accuracy(predicted, labels),
            "chance": labels.count(trained.most_common(1)[0][0]) / len(labels),
            "confusions": {label: dict(sorted(counts.items())) for label, counts in sorted(confusions.items())},
        }

    def _counts(self, records: Sequence[VideoRecord]) -> dict[str, Any]:
        return {
            "videos": len(records),
            "groups": len({one.group or one.video_id for one in records}),
            "by_class": dict(sorted(Counter(one.labels[self.column] for one in records).items())),
        }


def is_clearly_lower(losses: np.ndarray, others: np.ndarray) -> bool:
    """Whether the mean of losses is lower than that of others on the same videos, by more than a standard error.

    Args:
        losses: (videos,) losses.
        others: (videos,) losses, for the same videos.
    """
    gaps = others - losses
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
    return float(gaps.mean()) > error
