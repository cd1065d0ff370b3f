import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import R3D, Experiment
from hdc_keras.backbones import build_backbone
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord, read_records, with_splits
from hdc_keras.errors import StoppedError
from hdc_keras.finetuning.classifier import VideoClassifier
from hdc_keras.finetuning.job import FineTuningJob, fine_tune
from hdc_keras.finetuning.optimizer import recipe_optimizer
from hdc_keras.finetuning.recipes import FINE_TUNING, changed
from hdc_keras.finetuning.validation_split import hold_out
from hdc_keras.views.transforms import draw_geometry

SIZE = (20, 24)
EXPERIMENT = Experiment.model_validate(
    {
        "data": {"frames": 4, "stride": 1, "decode_size": SIZE, "max_failed_share": 0.5},
        "views": {"size": 16},
        "model": {"backbone": "r3d_tiny"},
        "evaluate": {"clips": 2, "batch_size": 4, "finetune_epochs": 3, "finetune_batch_size": 2},
    }
)
RECIPE = FINE_TUNING["finetune-rspnet"].applied(EXPERIMENT)


def job_on(folder, recipe=RECIPE, backbone=None, validation=0.0, title="a test"):
    records = with_splits(read_records(folder), 0.25, 0)
    train, held_out = hold_out(records, validation, "label", 0)
    test = [record for record in records if record.split == "test"]
    return FineTuningJob(title, recipe, backbone, EXPERIMENT, train, held_out, test, "label", 0)


def test_a_recipe_is_changed_only_where_the_run_or_the_settings_say_so_and_that_is_told():
    for published in FINE_TUNING.values():
        used = published.applied(EXPERIMENT)
        told = changed(published, used)
        expected = {"frames", "size", "epochs", "batch_size"} | ({"stride"} if published.stride != 1 else set())
        expected |= {"drops"} if published.drops else set()
        assert set(told) == expected and told["epochs"] == [published.epochs, 3]
    no_flip = EXPERIMENT.model_copy(update={"views": EXPERIMENT.views.model_copy(update={"flip": 0.0})})
    assert changed(RECIPE, FINE_TUNING["finetune-rspnet"].applied(no_flip)) == {"flip": [0.5, 0.0]}


def test_a_fixed_crop_is_a_square_of_the_clips_own_pixels():
    from hdc_keras.config import ViewsConfig

    settings = FINE_TUNING["finetune-vcop"].applied(EXPERIMENT).view_settings(SIZE)
    box = draw_geometry(50, SIZE, ViewsConfig.model_validate(settings), keras.random.SeedGenerator(0))["box"]
    top, left, height, width = np.moveaxis(ops.convert_to_numpy(box), 1, 0)

    np.testing.assert_allclose(height * SIZE[0], 16, rtol=1e-5)
    np.testing.assert_allclose(width * SIZE[1], 16, rtol=1e-5)
    assert top.std() > 0.02 and left.std() > 0.02


def test_learning_rates_follow_the_recipes():
    def rates(name, epochs, steps_per_epoch):
        settings = EXPERIMENT.evaluate.model_copy(update={"finetune_epochs": epochs})
        recipe = FINE_TUNING[name].applied(EXPERIMENT.model_copy(update={"evaluate": settings}))
        optimizer = recipe_optimizer(recipe, steps_per_epoch)
        found = []
        for step in range(epochs * steps_per_epoch):
            optimizer.iterations.assign(step)
            found.append(float(ops.convert_to_numpy(optimizer.learning_rate)))
        return np.array(found)

    np.testing.assert_allclose(rates("finetune-vcop", 2, 3), 1e-3, rtol=1e-5)
    by_epoch = rates("finetune-severe", 16, 2).reshape(16, 2)[:, 1]
    np.testing.assert_allclose(by_epoch, 1e-4 * 0.3 ** np.repeat([0, 1, 2, 3], [6, 4, 4, 2]), rtol=1e-4)
    cosine = 0.05 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(rates("finetune-rspnet", 4, 2), cosine, rtol=1e-4, atol=1e-7)


def test_weight_decay_is_part_of_the_gradient_of_every_weight():
    windows = np.random.default_rng(0).integers(0, 255, (4, 1, 4, *SIZE, 3), dtype=np.uint8)
    labels = np.array([0, 1, 0, 1])

    def trained(weight_decay):
        keras.utils.set_random_seed(0)
        plain = {"size": 16, "crop_area": (1.0, 1.0), "flip": 0, "jitter": 0, "grey": 0, "blur": 0}
        model = VideoClassifier(R3D([4, 4, 6, 8], [1, 1, 1, 1]), ["a", "b"], plain, weight_decay=weight_decay)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
        before = [ops.convert_to_numpy(variable) for variable in model.trainable_variables]
        model.fit(windows, labels, batch_size=4, epochs=1, verbose=0)
        return before, [ops.convert_to_numpy(variable) for variable in model.trainable_variables]

    (before, without), (_, decayed) = trained(0.0), trained(0.2)

    for start, one, other in zip(before, without, decayed, strict=True):
        np.testing.assert_allclose(one - other, 0.1 * 0.2 * start, atol=2e-5)


def test_groups_are_not_divided_by_validation_and_a_sets_own_is_kept():
    records = [
        VideoRecord(f"{label}{i}", f"{label}{i}", {"label": label}, "train", f"{label}{i // 3}")
        for label in "ab"
        for i in range(12)
    ]
    train, validation = hold_out(records, 0.25, "label", 0)

    assert {record.group for record in train}.isdisjoint({record.group for record in validation})
    assert sorted(record.labels["label"] for record in validation) == list("aaabbb") and len(train) == 18
    own = [*records, VideoRecord("v", "v", {"label": "a"}, "val")]
    assert hold_out(own, 0.25, "label", 0) == (records, own[-1:])
    assert hold_out(own, 0.0, "label", 0) == (records, [])
    one_group_each = [r for r in records if r.group.endswith("0")]
    assert hold_out(one_group_each, 0.25, "label", 0) == (one_group_each, [])


@pytest.fixture(scope="module")
def uninterrupted(class_folder_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return fine_tune(job_on(class_folder_once), folder, FrameStore(SIZE, 0.1)), folder


def test_every_test_video_is_scored_and_what_is_finished_is_not_done_again(uninterrupted, class_folder_once):
    scores, folder = uninterrupted
    told = []

    again = fine_tune(job_on(class_folder_once), folder, FrameStore(SIZE, 0.1), lambda *so_far: told.append(so_far))

    assert len(scores.records) == 2 and scores.scores.shape == (2, 2) and not scores.failed
    np.testing.assert_array_equal(again.scores, scores.scores)
    assert told == []
    (run,) = folder.iterdir()
    lines = (run / "metrics.csv").read_text().splitlines()
    assert len(lines) == 4 and {"top1", "loss", "learning_rate"} <= set(lines[0].split(","))
    assert not (run / "checkpoints").exists() and not (run / "classifier.keras").exists()


def test_a_stopped_training_goes_on_to_the_same_scores(uninterrupted, class_folder_once, tmp_path):
    def stop_in_the_second_epoch(what, done, total):
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="The same command goes on") as stopped:
        fine_tune(job_on(class_folder_once), tmp_path, FrameStore(SIZE, 0.1), stop_in_the_second_epoch)
    assert stopped.value.exit_code == 128 + signal.SIGTERM

    scores = fine_tune(job_on(class_folder_once), tmp_path, FrameStore(SIZE, 0.1))

    np.testing.assert_allclose(scores.scores, uninterrupted[0].scores, atol=1e-5)


def test_it_starts_from_the_weights_given_and_chooses_the_epoch_by_validation(class_folder_once, tmp_path, monkeypatch):
    backbone = build_backbone("r3d_tiny")
    started = []
    fit = VideoClassifier.fit

    def noted(self, *arguments, **keywords):
        started.append([weight.copy() for weight in self.backbone.get_weights()])
        return fit(self, *arguments, **keywords)

    monkeypatch.setattr(VideoClassifier, "fit", noted)
    job = job_on(class_folder_once, backbone=backbone, validation=0.3)
    scores = fine_tune(job, tmp_path, FrameStore(SIZE, 0.1))

    for given, used in zip(backbone.get_weights(), started[0], strict=True):
        np.testing.assert_array_equal(given, used)
    assert len(job.validation) == 2 and len(scores.records) == 2
    (run,) = tmp_path.iterdir()
    assert "val_loss" in (run / "metrics.csv").read_text()
    model = keras.models.load_model(run / "classifier.keras")
    assert isinstance(model, VideoClassifier) and model.classes == ["across", "around"]


def test_bad_videos_are_named_on_both_sides(class_folder, tmp_path):
    job = job_on(class_folder)
    for record in (job.train[0], job.test[1]):
        with open(record.path, "wb") as file:  # noqa: PTH123
            file.write(b"no video")

    scores = fine_tune(job, tmp_path, FrameStore(SIZE, 0.1))

    assert [record.video_id for record in scores.records] == [job.test[0].video_id]
    assert list(scores.failed) == [job.test[1].path] and list(scores.training_failed) == [job.train[0].path]


# Two logical devices, or one, on a network without batch norm, which takes its statistics on each device.
ON_DEVICES = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf

devices, folder, videos = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
from hdc_keras.backbones import BACKBONES
from tests.finetuning import test_job as tests
from tests.plain_backbone import PlainConvolutions

BACKBONES["r3d_tiny"] = PlainConvolutions
train = tests.EXPERIMENT.train.model_copy(update={"strategy": "mirrored" if devices > 1 else "one_device"})
tests.EXPERIMENT = tests.EXPERIMENT.model_copy(update={"train": train})
scores = tests.fine_tune(tests.job_on(videos), folder / "runs", tests.FrameStore(tests.SIZE, 0.1))
np.save(folder / "scores.npy", scores.scores)
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="MirroredStrategy is TensorFlow's")
def test_two_devices_give_the_scores_of_one(class_folder_once, tmp_path):
    scores = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        command = [sys.executable, "-c", ON_DEVICES, str(devices), str(folder), str(class_folder_once)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        scores.append(np.load(folder / "scores.npy"))

    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
