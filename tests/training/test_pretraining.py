import csv
import json
import os
import signal

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.errors import RunError, TrainingError
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.models import build_model
from hdc_keras.training.optimizers import WarmupCosine, build_optimizer
from hdc_keras.training.pretraining import pretrain


def experiment_on(folder, **train):
    return Experiment.model_validate(
        {
            "name": "test",
            "data": {"path": str(folder), "frames": 4, "decode_size": (20, 20)},
            "views": {"size": 16},
            "model": {"backbone": "r3d_tiny"},
            "contrast": {"embedding_dim": 8},
            "train": {"epochs": 4, "batch_size": 2, "learning_rate": 0.02, "knn_every": 2, **train},
        }
    )


def run_of(tmp_path, experiment, name="run"):
    run = RunDirectory(tmp_path / name)
    run.create(experiment)
    return run


class StopAfter(keras.callbacks.Callback):
    """Sends this process a signal after a number of steps, as a user's Ctrl-C does."""

    def __init__(self, steps, number=signal.SIGINT):
        super().__init__()
        self.left, self.number = steps, number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def assert_identical(ones, others):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one, other)


def weights_of(run):
    model, _ = run.checkpoints.load()
    return [ops.convert_to_numpy(variable) for variable in model.weights]


@pytest.fixture
def deterministic_ops():
    """Without it threads add in any order, and 12 steps of training differ from one time to the next."""
    import tensorflow as tf
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    tf.config.experimental.enable_op_determinism()
    yield
    config.disable_op_determinism()


def test_a_run_leaves_all_that_is_needed_to_repeat_it(class_folder, tmp_path):
    experiment = experiment_on(class_folder)
    run = run_of(tmp_path, experiment)

    outcome = pretrain(experiment, run, load_videos(experiment).records)

    assert outcome.finished and (outcome.step, outcome.epochs) == (12, 4)
    assert run.experiment() == experiment
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["seed"] == 0 and {"keras", "numpy"} <= set(environment["packages"])
    rows = run.read_metrics()
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4] and float(rows[-1]["loss"]) > 0
    assert [bool(row["knn_label"]) for row in rows] == [False, True, False, True]
    assert json.loads((run.path / "metrics.json").read_text())[-1]["loss"] == float(rows[-1]["loss"])
    assert [file.name for file in run.checkpoints.files()] == ["step-000000009.keras", "step-000000012.keras"]
    assert all(0 <= float(row["data_wait_share"]) <= 1 for row in rows)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.event_folder)).Reload()
    assert events.Tags()["images"] == ["views"]
    scalars = set(events.Tags()["scalars"])
    assert {"loss/P2_spatial", "accuracy/P5_temporal", "learning_rate", "data_wait_share"} <= scalars
    assert (run.path / "views.png").read_bytes().startswith(b"\x89PNG")
    assert not [file for file in run.path.rglob(".*") if file.is_file()]


@pytest.mark.parametrize("stop_after", [2, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_continues_to_the_weights_of_an_undisturbed_one(
    class_folder, tmp_path, deterministic_ops, stop_after, number
):
    experiment = experiment_on(class_folder, knn_every=0)
    records = load_videos(experiment).records
    undisturbed, stopped = (run_of(tmp_path, experiment, name) for name in ("undisturbed", "stopped"))
    pretrain(experiment, undisturbed, records)

    outcome = pretrain(experiment, stopped, records, callbacks=[StopAfter(stop_after, number)])
    assert not outcome.finished and outcome.step in (stop_after, stop_after + 1)
    outcome = pretrain(experiment, stopped, records, resume=True)

    assert outcome.finished and outcome.step == 12
    assert [row["epoch"] for row in stopped.read_metrics()] == ["1", "2", "3", "4"]
    assert_identical(weights_of(undisturbed), weights_of(stopped))


def test_the_knn_check_does_not_touch_the_training(class_folder, tmp_path, deterministic_ops):
    runs = {}
    for every in (0, 1):
        experiment = experiment_on(class_folder, knn_every=every)
        runs[every] = run_of(tmp_path, experiment, f"every{every}")
        pretrain(experiment, runs[every], load_videos(experiment).records)

    assert_identical(weights_of(runs[0]), weights_of(runs[1]))
    assert runs[1].load_checkpoint()[0].backbone.trainable


def test_signals_are_given_back(class_folder, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    experiment = experiment_on(class_folder, epochs=1, knn_every=0)

    pretrain(experiment, run_of(tmp_path, experiment), load_videos(experiment).records)

    assert signal.getsignal(signal.SIGINT) is before


def test_the_loss_goes_down(class_folder, tmp_path):
    # All six training videos in each batch: with two, how hard the pair is to tell apart decides the loss.
    optimizer = {"optimizer": "adamw", "learning_rate": 0.003, "warmup_epochs": 1}
    experiment = experiment_on(class_folder, epochs=75, batch_size=6, knn_every=0, checkpoint_every=75, **optimizer)
    run = run_of(tmp_path, experiment)

    pretrain(experiment, run, load_videos(experiment).records)

    losses = [float(row["loss"]) for row in run.read_metrics()]
    assert np.mean(losses[-15:]) < 0.75 * np.mean(losses[:15])


def test_bad_videos_are_skipped_and_listed(class_folder, tmp_path):
    (class_folder / "across" / "9.mp4").write_text("no video")
    experiment = experiment_on(class_folder, epochs=3, knn_every=0)
    experiment = experiment.model_copy(update={"data": experiment.data.model_copy(update={"max_failed_share": 0.5})})
    records = load_videos(experiment).records
    records = [r if "9.mp4" not in r.path else type(r)(r.path, r.video_id, r.labels, "train", None) for r in records]
    run = run_of(tmp_path, experiment)

    outcome = pretrain(experiment, run, records)

    assert outcome.finished and list(outcome.failed_videos) == [str(class_folder / "across" / "9.mp4")]
    with (run.path / "failures.csv").open() as file:
        assert "Invalid data" in next(csv.DictReader(file))["cause"]


def test_a_finished_run_cannot_be_resumed(class_folder, tmp_path):
    experiment = experiment_on(class_folder, epochs=1, knn_every=0)
    run = run_of(tmp_path, experiment)
    pretrain(experiment, run, load_videos(experiment).records)

    with pytest.raises(RunError, match="is finished"):
        pretrain(experiment, run, load_videos(experiment).records, resume=True)


def test_a_damaged_checkpoint_is_named(class_folder, tmp_path):
    experiment = experiment_on(class_folder)
    run = run_of(tmp_path, experiment)
    (run.checkpoints.folder / "step-000000001.keras").write_bytes(b"not a checkpoint")

    with pytest.raises(RunError, match=r"step-000000001.keras cannot be loaded"):
        run.checkpoints.load()


def test_a_checkpoint_of_another_architecture_is_refused(class_folder, tmp_path):
    experiment = experiment_on(class_folder)
    run = run_of(tmp_path, experiment)
    other = experiment.model_copy(update={"contrast": experiment.contrast.model_copy(update={"embedding_dim": 16})})
    run.checkpoints.save(build_model(other), 1, keep=1)

    with pytest.raises(RunError, match="another architecture"):
        run.checkpoints.load()


def test_a_seed_gives_the_same_weights(class_folder):
    experiment = experiment_on(class_folder)
    one, other = (build_model(experiment).get_weights() for _ in range(2))

    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_schedule_warms_up_linearly_and_ends_at_zero():
    schedule = WarmupCosine(0.4, 10, 110)

    assert float(schedule(0)) == pytest.approx(0.04) and float(schedule(9)) == pytest.approx(0.4)
    for step in (10, 35, 60, 85, 110, 200):
        share = min(1, (step - 10) / 100)
        assert float(schedule(step)) == pytest.approx(0.2 * (1 + np.cos(np.pi * share)), abs=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_leaves_out_biases_and_norms(class_folder, name):
    model = build_model(experiment_on(class_folder))
    kept = [value.copy() for value in model.get_weights()]
    optimizer = build_optimizer(experiment_on(class_folder, optimizer=name, weight_decay=0.1).train, 10)
    optimizer.apply([ops.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)

    moved = {v.name for v, old in zip(model.weights, kept, strict=True) if not np.array_equal(v, old)}
    assert moved == {"kernel"}


@pytest.fixture
def a_bad_batch(monkeypatch):
    """The eighth batch of a run has a pixel that is not a number."""
    import tensorflow as tf

    from hdc_keras.data import pipeline

    good = pipeline.windows_dataset

    def with_a_bad_one(*arguments):
        bad = tf.one_hot(3, 4) * float("nan")  # in the fourth frame
        return (
            good(*arguments)
            .enumerate()
            .map(lambda i, x: tf.where(i == 7, bad[:, None, None, None], 0.0) + tf.cast(x, tf.float32))
        )

    monkeypatch.setattr(pipeline, "windows_dataset", with_a_bad_one)


def test_a_number_that_is_none_stops_the_run_and_is_named(class_folder, tmp_path, a_bad_batch):
    experiment = experiment_on(class_folder, knn_every=0)
    run = run_of(tmp_path, experiment)

    with pytest.raises(TrainingError, match=r"step 8: P2_spatial_loss.*step-000000006.keras was saved before it"):
        pretrain(experiment, run, load_videos(experiment).records)

    assert [file.name for file in run.checkpoints.files()] == ["step-000000003.keras", "step-000000006.keras"]
    assert all(np.isfinite(weight).all() for weight in weights_of(run))


def test_or_the_step_is_left_out_and_counted(class_folder, tmp_path, a_bad_batch):
    experiment = experiment_on(class_folder, knn_every=0, on_nan="skip")
    run = run_of(tmp_path, experiment)

    outcome = pretrain(experiment, run, load_videos(experiment).records)

    assert outcome.finished and (outcome.step, outcome.skipped) == (12, 1)
    assert [row["skipped_steps"] for row in run.read_metrics()] == ["0.0", "0.0", "1.0", "1.0"]
    assert all(np.isfinite(weight).all() for weight in weights_of(run))


def test_the_best_checkpoint_is_kept_besides_the_newest(class_folder, tmp_path):
    experiment = experiment_on(class_folder)
    run = run_of(tmp_path, experiment)
    model = build_model(experiment)

    for step, (by, score) in enumerate([("loss", -3.0), ("knn", 0.4), ("knn", 0.3), ("loss", 9.0), ("knn", 0.4)], 1):
        run.checkpoints.keep_best(run.checkpoints.save(model, step, keep=2), by, score)

    assert [file.name for file in run.checkpoints.files()] == ["step-000000004.keras", "step-000000005.keras"]
    assert json.loads((run.path / "best.json").read_text())["checkpoint"] == "step-000000002"
    assert run.checkpoints.load(best=True)[1] == run.checkpoints.best


def test_a_run_begins_with_the_weights_of_another_and_nothing_else(class_folder, tmp_path):
    experiment = experiment_on(class_folder, epochs=1, knn_every=0)
    first = run_of(tmp_path, experiment, "first")
    pretrain(experiment, first, load_videos(experiment).records)
    other = experiment.model_copy(
        update={
            "model": experiment.model.model_copy(update={"init_from": str(first.path)}),
            "contrast": experiment.contrast.model_copy(update={"task": "spatial"}),
        }
    )

    model, (source, _) = build_model(other), first.load_checkpoint()

    assert_identical(model.backbone.get_weights(), source.backbone.get_weights())
    assert_identical(
        model.objective.heads["P2_spatial"].get_weights(), source.objective.heads["P2_spatial"].get_weights()
    )
    assert model.steps_taken == 0 and source.steps_taken == 3
    wrong = other.model_copy(update={"model": other.model.model_copy(update={"backbone": "c3d_tiny"})})
    with pytest.raises(RunError, match="does not fit"):
        build_model(wrong)


def test_what_cannot_be_written_ends_the_run_and_harms_no_checkpoint(class_folder, tmp_path):
    import resource

    experiment = experiment_on(class_folder, knn_every=0)
    run = run_of(tmp_path, experiment)

    class NoRoom(keras.callbacks.Callback):
        """From the second epoch on the system refuses files as large as a checkpoint."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(RunError, match=r"step-000000006.keras cannot be written \(File too large\)"):
            pretrain(experiment, run, load_videos(experiment).records, callbacks=[NoRoom()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, ignored)

    assert [file.name for file in run.checkpoints.folder.iterdir() if file.name != "best.keras"] == [
        "step-000000003.keras"
    ]
    assert run.checkpoints.load()[0].steps_taken == 3


@pytest.mark.parametrize("options", [{"micro_batches": 2}, {"rematerialise": True}, {"precision": "mixed_float16"}])
def test_options_that_save_memory_run_to_the_end(class_folder, tmp_path, options):
    experiment = experiment_on(class_folder, epochs=2, knn_every=0, optimizer="lars", clip_norm=1.0, **options)

    run = run_of(tmp_path, experiment)
    outcome = pretrain(experiment, run, load_videos(experiment).records)

    assert outcome.finished and outcome.step == 6
    assert keras.config.dtype_policy().name == "float32"  # what is built next is not of this run's precision
    model, _ = run.checkpoints.load(compiled=True)
    assert model.backbone.layers[-1].dtype_policy.name == options.get("precision", "float32")
    assert hasattr(model.optimizer, "inner_optimizer") == ("precision" in options)
