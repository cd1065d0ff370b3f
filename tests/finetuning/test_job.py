import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

from hdc_keras import locks
from hdc_keras.backbones import BACKBONES, build_backbone
from hdc_keras.data.loading import DecodeFailures
from hdc_keras.errors import RunError, StoppedError
from hdc_keras.finetuning.classifier import BalancedCrossEntropy, VideoClassifier
from hdc_keras.finetuning.directory import FineTuningDirectory, Scores
from hdc_keras.finetuning.job import ClassifierOptions, LinearHead, directory_of, fine_tune, new_classifier
from hdc_keras.finetuning.scoring import ClipScorer, score_videos
from hdc_keras.locks import lock_file
from tests.finetuning.small_job import RECIPE, frame_store, small_job
from tests.plain_backbone import PlainConvolutions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uninterrupted(class_folder_once, tmp_path_factory):
    """Scores of a fine-tuning from random weights, and its parent folder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return fine_tune(small_job(class_folder_once), folder, frame_store()), folder


def metrics_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_test_video_is_scored_and_a_finished_job_is_not_repeated(uninterrupted, class_folder_once):
    scores, folder = uninterrupted
    reported = []

    again = fine_tune(small_job(class_folder_once), folder, frame_store(), lambda *done: reported.append(done))

    assert len(scores.records) == 2 and scores.scores.shape == (2, 2) and not scores.failed
    np.testing.assert_array_equal(again.scores, scores.scores)
    assert again.records == scores.records and reported == []
    (run,) = folder.iterdir()
    metrics = metrics_of(run)
    assert [row["epoch"] for row in metrics] == ["1", "2", "3"] and {"top1", "loss", "learning_rate"} <= set(metrics[0])
    # The baseline from random weights keeps its scores, but neither checkpoints nor the classifier.
    assert not (run / "checkpoints").exists() and not (run / "classifier.keras").exists()
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_a_stopped_training_resumes_to_the_same_scores(uninterrupted, class_folder_once, tmp_path):
    def stop_in_the_second_epoch(what, done, total):
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="Repeat the command to resume") as stopped:
        fine_tune(small_job(class_folder_once), tmp_path, frame_store(), stop_in_the_second_epoch)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    (run,) = tmp_path.iterdir()
    leftover = run / ".scores.npz.unfinished-0123456789ab"  # as a killed process leaves it
    leftover.write_text("half")

    scores = fine_tune(small_job(class_folder_once), tmp_path, frame_store())

    np.testing.assert_allclose(scores.scores, uninterrupted[0].scores, atol=1e-5)
    assert not leftover.exists()


def test_training_starts_from_the_given_weights(class_folder_once, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "r3d_tiny", PlainConvolutions)
    backbone = build_backbone("r3d_tiny")
    initial_weights = []
    fit = VideoClassifier.fit

    def fit_and_note(self, *arguments, **keywords):
        initial_weights.append([weight.copy() for weight in self.backbone.get_weights()])
        return fit(self, *arguments, **keywords)

    monkeypatch.setattr(VideoClassifier, "fit", fit_and_note)
    fine_tune(small_job(class_folder_once, replace(RECIPE, epochs=1), backbone), tmp_path, frame_store())

    for given, used in zip(backbone.get_weights(), initial_weights[0], strict=True):
        np.testing.assert_array_equal(given, used)


def test_the_epoch_with_the_lowest_validation_loss_is_scored_and_saved(class_folder_once, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "r3d_tiny", PlainConvolutions)
    job = small_job(class_folder_once, backbone=build_backbone("r3d_tiny"), validation=0.3)
    # The network learns to predict the only label of the training videos, so the validation loss grows.
    train = [replace(record, labels={"label": "across"}) for record in job.train]
    validation = [replace(record, labels={"label": "around"}) for record in job.validation]
    job = replace(job, train=train, validation=validation)

    with keras.saving.custom_object_scope({"PlainConvolutions": PlainConvolutions}):
        scores = fine_tune(job, tmp_path, frame_store())
        (run,) = tmp_path.iterdir()
        model = keras.models.load_model(run / "classifier.keras")

    losses = [float(row["val_loss"]) for row in metrics_of(run)]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert isinstance(model, VideoClassifier) and model.classes == ["across", "around"]
    assert model.steps_taken == 2  # one epoch: four training videos in batches of two
    failures = DecodeFailures(2, 0.0)
    records, values = score_videos(
        ClipScorer(model), job.test, job.experiment, frame_store(), failures, RECIPE.averaged
    )
    assert records == scores.records
    np.testing.assert_allclose(scores.scores, values, atol=1e-5)


def test_broken_videos_are_listed_for_training_and_test(class_folder, tmp_path):
    job = small_job(class_folder, replace(RECIPE, epochs=1))
    for record in (job.train[0], job.test[1]):
        Path(record.path).write_text("not a video")

    scores = fine_tune(job, tmp_path, frame_store())

    assert [record.video_id for record in scores.records] == [job.test[0].video_id]
    assert list(scores.failed) == [job.test[1].path] and list(scores.training_failed) == [job.train[0].path]


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="MirroredStrategy is TensorFlow's")
def test_two_devices_give_the_scores_of_one(class_folder_once, tmp_path, monkeypatch):
    # A network without batch norm, whose statistics would differ between devices.
    monkeypatch.setitem(BACKBONES, "r3d_tiny", PlainConvolutions)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    one = fine_tune(small_job(class_folder_once), tmp_path / "one", frame_store()).scores
    worker = Path(__file__).with_name("devices_worker.py")
    command = [sys.executable, worker, "2", tmp_path / "two", class_folder_once]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "two" / "scores.npy"), one, atol=1e-4)


def test_a_fine_tuning_that_another_process_trains_is_refused(class_folder_once, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from tests.finetuning.small_job import *\n"
        "from hdc_keras.finetuning.job import fine_tune\n"
        "def show(what, done, total):\n"
        "    if done == 2: print(what, flush=True); time.sleep(60)\n"
        "fine_tune(small_job(Path(sys.argv[1])), Path(sys.argv[2]), frame_store(), show)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, class_folder_once, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline().startswith("a test")
        (folder,) = tmp_path.iterdir()
        before = sorted(folder.rglob("*"))
        with pytest.raises(RunError, match=f"{folder} is being fine-tuned by process {holder.pid} on .* Wait until it"):
            fine_tune(small_job(class_folder_once), tmp_path, frame_store())
        assert sorted(folder.rglob("*")) == before
    finally:
        holder.kill()
        holder.wait()

    assert len(fine_tune(small_job(class_folder_once), tmp_path, frame_store()).records) == 2
    assert not list(folder.glob(".*"))


def test_nothing_is_written_after_another_process_took_over_a_fine_tuning(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 1.0)
    run, other = FineTuningDirectory(tmp_path / "run"), FineTuningDirectory(tmp_path / "run")
    scores = Scores([], np.zeros((0, 2)), {}, {})
    with run.sole_training():
        lock_file(tmp_path / "run" / "training").unlink()  # as a process does that finds it stale
        with other.sole_training():
            for write in (partial(run.save_classifier, None), partial(run.write_scores, scores)):
                with pytest.raises(RunError, match=r"is being fine-tuned by process .* which took over"):
                    write()
            assert lock_file(tmp_path / "run" / "training").exists()
    assert not list(tmp_path.glob("run/*"))


def test_a_classifier_starts_from_the_given_head_and_reads_the_given_levels(class_folder_once):
    rng = np.random.default_rng(0)
    channels = sum(build_backbone("r3d_tiny").pyramid_outputs[level].shape[-1] for level in ("P3", "P5"))
    head = LinearHead(rng.normal(size=(channels, 2)).astype("float32"), np.array([0.5, -0.5], "float32"))
    options = ClassifierOptions(("P3", "P5"), head, is_balanced=True, patience=2)
    job = replace(small_job(class_folder_once), options=options)

    model = new_classifier(job, job.experiment)

    assert model.levels == ("P3", "P5")
    for given, used in zip((head.kernel, head.bias), model.classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(given, used)
    others = (
        replace(options, patience=3),
        replace(options, is_balanced=False),
        replace(options, levels=("P5",)),
        ClassifierOptions(),
    )
    assert len({replace(job, options=one).digest() for one in (options, *others)}) == 5
    assert replace(job, options=ClassifierOptions()).digest() == small_job(class_folder_once).digest()


@pytest.mark.parametrize(("patience", "epochs"), [(2, 4), (None, 6)])
def test_training_ends_when_the_validation_loss_no_longer_falls(
    class_folder_once, tmp_path, monkeypatch, patience, epochs
):
    losses = iter([1.0, 0.8, 0.9, 0.85, 0.7, 0.6])
    monkeypatch.setattr("hdc_keras.finetuning.job.validation_metrics", lambda *_: {"val_loss": next(losses)})
    recipe = replace(RECIPE, epochs=6, validation=0.4)
    job = replace(small_job(class_folder_once, recipe, validation=0.4), options=ClassifierOptions(patience=patience))
    assert job.validation

    fine_tune(job, tmp_path, frame_store())

    rows = metrics_of(directory_of(job, tmp_path).path)
    assert [float(row["val_loss"]) for row in rows] == [1.0, 0.8, 0.9, 0.85, 0.7, 0.6][:epochs]


def test_in_a_balanced_loss_each_class_counts_the_same():
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.3, 0.0]], "float32")
    labels = np.array([0, 0, 0, 1])
    each = keras.ops.convert_to_numpy(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))

    # 4 videos, 2 classes: weights 4 / 2 / 3 and 4 / 2 / 1.
    loss = BalancedCrossEntropy([4 / 6, 4 / 2])

    assert float(loss(labels, logits)) == pytest.approx((each[:3].mean() + each[3]) / 2, rel=1e-5)
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(copy(labels[:, None], logits)) == pytest.approx(float(loss(labels, logits)))
