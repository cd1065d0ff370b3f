"""Scores and validation metrics against a slow reference: one video and one clip at a time."""

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.data.loading import DecodeFailures
from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.data.sampling import evenly_spaced_clips
from hdc_keras.finetuning.classifier import VideoClassifier
from hdc_keras.finetuning.scoring import ClipScorer, score_videos, validation_metrics
from tests.finetuning.small_job import EXPERIMENT, frame_store
from tests.plain_backbone import PlainConvolutions


@pytest.fixture(scope="module")
def scorer():
    keras.utils.set_random_seed(0)
    model = VideoClassifier(PlainConvolutions(), ["a", "b", "c"], {"size": 16}, crops=2)
    for variable in model.trainable_variables:  # so the classes get different scores
        variable.assign(variable * 4)
    return ClipScorer(model)


@pytest.fixture(scope="module")
def records(class_folder_once):
    return read_records(class_folder_once)[:5]


def logits_of(scorer, record, clips):
    """(views, classes) of evenly spaced clips of a video."""
    store = frame_store()
    frames = store.clips(record, evenly_spaced_clips(store.count(record), clips, 4, 1))
    return np.concatenate([ops.convert_to_numpy(scorer(clip[None])["logits"]) for clip in frames])


@pytest.mark.parametrize("averaged", ["logits", "softmax"])
def test_scores_are_the_mean_of_logits_or_softmax_over_views(scorer, records, tmp_path, averaged):
    (tmp_path / "broken.mp4").write_text("not a video")
    broken = VideoRecord(str(tmp_path / "broken.mp4"), "broken")
    failures = DecodeFailures(6, 0.5)

    scored, scores = score_videos(
        scorer, [records[0], broken, *records[1:]], EXPERIMENT, frame_store(), failures, averaged
    )

    assert scored == records and list(failures.reasons) == [broken.path]
    for record, found in zip(records, scores, strict=True):
        views = logits_of(scorer, record, clips=2)
        assert views.shape == (4, 3)
        if averaged == "softmax":
            views = np.exp(views) / np.exp(views).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found, views.mean(axis=0), atol=1e-5)


def test_validation_metrics_are_cross_entropy_and_accuracy_of_the_middle_clip(scorer, records, tmp_path):
    (tmp_path / "broken.mp4").write_text("not a video")
    broken = VideoRecord(str(tmp_path / "broken.mp4"), "broken")
    middle_clips = [
        [frame_store().clips(record, np.arange(4) + (frame_store().count(record) - 4) // 2)] for record in records
    ]
    logits = [ops.convert_to_numpy(scorer(np.stack(clip))["logits"]).mean(axis=0) for clip in middle_clips]
    labels = [int(np.argmax(row)) for row in logits]
    labels[0] = (labels[0] + 1) % 3  # one of five is wrong
    failures = DecodeFailures(1, 0.0)

    metrics = validation_metrics(scorer, [*records, broken], [*labels, 0], EXPERIMENT, frame_store(), failures)

    losses = [-np.log(np.exp(row[label]) / np.exp(row).sum()) for row, label in zip(logits, labels, strict=True)]
    assert metrics["val_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert metrics["val_top1"] == pytest.approx(0.8)
    assert list(failures.reasons) == [broken.path]


def test_without_validation_videos_there_are_no_metrics(scorer):
    assert validation_metrics(scorer, [], [], EXPERIMENT, frame_store(), DecodeFailures(1, 0.0)) == {}
