"""Apply a fine-tuned classifier to videos: scores of test videos, and the metrics of validation videos."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.loading import DecodeFailures, FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.features.extraction import encoded_batches
from hdc_keras.finetuning.classifier import VideoClassifier

Tensor = Any


class ClipScorer(keras.Model):
    """Applies a classifier to clips on one device: (clips, time, height, width, 3) uint8 -> (crops * clips, classes).

    The classifier's own `predict_on_batch` would give the whole batch to each device that it was trained on.

    Args:
        classifier: the classifier. The scorer shares its weights.
    """

    def __init__(self, classifier: VideoClassifier, **kwargs: Any):
        super().__init__(**kwargs)
        self.classifier = classifier
        self.crops = classifier.crops
        self.built = True

    def call(self, clips: Tensor) -> dict[str, Tensor]:
        """Return the logits under the name "logits"."""
        return {"logits": self.classifier(clips[:, None], training=False)}


def score_videos(
    scorer: ClipScorer,
    records: Sequence[VideoRecord],
    experiment: Experiment,
    store: FrameStore,
    failures: DecodeFailures,
    averaged: Literal["logits", "softmax"],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[VideoRecord], np.ndarray]:
    """Score videos by the mean over `evaluate.clips` clips and `evaluate.crops` crops of each.

    Args:
        scorer: the classifier.
        records: the videos.
        experiment: its `data` and `evaluate` sections define the clips.
        store: decodes the videos.
        failures: collects the videos that cannot be decoded.
        averaged: what to average over the views of a video.
        progress: called with (videos done, total videos).

    Returns:
        The videos that could be decoded, and their scores (videos, classes) float32.

    Raises:
        DataError: too many videos cannot be decoded.
    """
    scored: list[VideoRecord] = []
    scores: list[np.ndarray] = []
    for batch, outputs in encoded_batches(
        scorer.predict_on_batch, scorer.crops, records, experiment, store, failures, progress
    ):
        scored += batch
        scores.append(mean_over_views(outputs["logits"], averaged))
    return scored, np.concatenate(scores) if scores else np.zeros((0, len(scorer.classifier.classes)), np.float32)


def mean_over_views(logits: np.ndarray, averaged: Literal["logits", "softmax"]) -> np.ndarray:
    """Average the logits, or their softmax, of the views of each video.

    Args:
        logits: (videos, views, classes).
        averaged: what to average.

    Returns:
        (videos, classes).
    """
    if averaged == "logits":
        return logits.mean(axis=1)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).mean(axis=1)


def validation_metrics(
    scorer: ClipScorer,
    records: Sequence[VideoRecord],
    labels: Sequence[int],
    experiment: Experiment,
    store: FrameStore,
    failures: DecodeFailures,
) -> dict[str, float]:
    """Compute loss and top-1 accuracy from the middle clip of each validation video.

    Args:
        scorer: the classifier.
        records: the validation videos.
        labels: index of the class of each video.
        experiment: its `data` and `evaluate` sections define the clips.
        store: decodes the videos.
        failures: collects the videos that cannot be decoded. There is no limit on their number here.

    Returns:
        `val_loss` (cross-entropy) and `val_top1` (in [0, 1]); empty if there are no videos, or none can be decoded.
    """
    losses, is_correct = [], []
    settings = experiment.evaluate.model_copy(update={"clips": 1})
    one_clip = experiment.model_copy(update={"evaluate": settings})
    label_by_id = {record.video_id: label for record, label in zip(records, labels, strict=True)}
    any_may_fail = DecodeFailures(len(records), 1.0)
    for batch, outputs in encoded_batches(
        scorer.predict_on_batch, scorer.crops, records, one_clip, store, any_may_fail
    ):
        logits = outputs["logits"].mean(axis=1)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        batch_labels = [label_by_id[record.video_id] for record in batch]
        losses += [-log_softmax[row, label] for row, label in enumerate(batch_labels)]
        is_correct += list(logits.argmax(axis=1) == batch_labels)
    failures.by_id.update(any_may_fail.by_id)
    return {"val_loss": float(np.mean(losses)), "val_top1": float(np.mean(is_correct))} if losses else {}
