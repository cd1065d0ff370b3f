import csv
import json
import os
import resource
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
from hdc_keras.config import Length
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.errors import RunError, TrainingError
from hdc_keras.step.options import StepOptions
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.models import build_model, compiled_model
from hdc_keras.training.pretraining import pretrain
from tests.training.small_runs import (
    AfterSteps,
    assert_identical,
    changed,
    experiment_on,
    pretrain_run,
    run_of,
    weights_of,
)


def signal_during(step, number):
    """Sends this process a signal during a step, as Ctrl-C does."""
    return AfterSteps(step - 1, lambda: os.kill(os.getpid(), number))


def test_a_run_holds_everything_needed_to_repeat_it(undisturbed):
    environment = json.loads((undisturbed.path / "environment.json").read_text())
    assert environment["seed"] == 0 and {"keras", "numpy"} <= set(environment["packages"])
    assert undisturbed.experiment().train.knn_every == 2
    saved = [file.name for file in undisturbed.checkpoints.files()]
    assert saved == ["step-000000009.keras", "step-000000012.keras"]
    assert (undisturbed.path / "views.png").read_bytes().startswith(b"\x89PNG")
    assert not [file for file in undisturbed.path.rglob(".*") if file.is_file()]


def test_metrics_are_written_after_each_epoch(undisturbed):
    rows = undisturbed.read_metrics()

    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert [bool(row["knn_train_label"]) for row in rows] == [False, True, False, True]
    assert all(float(row["P2_spatial_weight"]) == float(row["P3_temporal_weight"]) == 1.0 for row in rows)
    for row in rows:  # one level per task, so weights are 1
        assert float(row["loss"]) == pytest.approx(
            float(row["P2_spatial_loss"]) + float(row["P3_temporal_loss"]), rel=1e-5
        )
        clips = 3 * 2 * 3  # steps, videos, views
        assert float(row["clips_per_second"]) == pytest.approx(clips / float(row["seconds"]), rel=0.05)
    as_json = json.loads((undisturbed.path / "metrics.json").read_text())
    assert [row["loss"] for row in as_json] == [float(row["loss"]) for row in rows]


def test_tensorboard_shows_the_metrics_and_the_views(undisturbed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(undisturbed.event_folder)).Reload()

    assert events.Tags()["images"] == ["views"]
    for tag, column in (
        ("loss", "loss"),
        ("loss/P2_spatial", "P2_spatial_loss"),
        ("accuracy/P3_temporal", "P3_temporal_accuracy"),
        ("learning_rate", "learning_rate"),
        ("data_wait_share", "data_wait_share"),
    ):
        expected = [float(row[column]) for row in undisturbed.read_metrics()]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(expected, rel=1e-4), tag


# Step 3 is the last of its epoch, step 4 the first.
@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGINT, 4),
        pytest.param(signal.SIGINT, 3, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 3, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 4, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_resumes_to_the_weights_of_an_undisturbed_one(undisturbed, tmp_path, number, step):
    run = run_of(tmp_path, undisturbed.experiment())
    handler = signal.getsignal(number)

    outcome = pretrain_run(run, callbacks=[signal_during(step, number)])
    assert not outcome.finished and outcome.step == step and outcome.signal == number
    assert signal.getsignal(number) is handler
    assert run.checkpoints.files()[-1].name == f"step-{step:09d}.keras"
    outcome = pretrain_run(run, resume=True)

    assert outcome.finished and outcome.step == 12 and signal.getsignal(number) is handler
    assert [row["epoch"] for row in run.read_metrics()] == ["1", "2", "3", "4"]
    assert_identical(weights_of(undisturbed), weights_of(run))


def test_a_checkpoint_within_an_epoch_is_continued_exactly(undisturbed, tmp_path):
    # With so few minutes, one is saved after each step.
    run = run_of(
        tmp_path, changed(undisturbed.experiment(), train={"checkpoint_minutes": 1e-9, "keep_checkpoints": 99})
    )
    pretrain_run(run, callbacks=[signal_during(5, signal.SIGINT)])
    assert [file.stem for file in run.checkpoints.files()] == [f"step-{step:09d}" for step in range(1, 6)]
    assert json.loads((run.path / "best.json").read_text())["checkpoint"] == "step-000000003"  # whole epochs only

    for file in run.checkpoints.files()[4:]:  # as if the process had been killed between step 4 and step 5
        file.unlink()
    pretrain_run(run, resume=True)

    assert_identical(weights_of(undisturbed), weights_of(run))
    assert [row["epoch"] for row in run.read_metrics()] == ["1", "2", "3", "4"]


def test_an_epoch_that_a_stop_left_whole_may_be_the_best(undisturbed, tmp_path):
    run = run_of(tmp_path, undisturbed.experiment())

    pretrain_run(run, callbacks=[signal_during(6, signal.SIGINT)])  # the last step of the second epoch

    # The first epoch is judged by its loss, and the second by a kNN check, which counts more.
    assert [bool(row["knn_train_label"]) for row in run.read_metrics()] == [False, True]
    assert json.loads((run.path / "best.json").read_text())["checkpoint"] == "step-000000006"


def test_a_run_that_ended_before_its_first_checkpoint_is_resumed_from_the_beginning(undisturbed, tmp_path):
    run, said = run_of(tmp_path, undisturbed.experiment()), []

    outcome = pretrain_run(run, resume=True, warn=said.append)

    assert outcome.finished and "ended before its first checkpoint. It starts from the beginning." in said[0]
    assert_identical(weights_of(undisturbed), weights_of(run))


def test_the_knn_check_does_not_change_the_training(undisturbed, tmp_path):
    run = run_of(tmp_path, changed(undisturbed.experiment(), train={"knn_every": 0}))

    pretrain_run(run)

    assert "knn_train_label" in undisturbed.read_metrics()[1] and "knn_train_label" not in run.read_metrics()[1]
    assert_identical(weights_of(undisturbed), weights_of(run))
    assert undisturbed.checkpoints.load()[0].backbone.trainable


def test_a_finished_run_cannot_be_resumed(undisturbed):
    with pytest.raises(RunError, match=r"is finished: step-000000012\.keras"):
        pretrain_run(undisturbed, resume=True)


def test_init_from_copies_only_the_weights_of_another_run(undisturbed):
    other = changed(undisturbed.experiment(), model={"init_from": str(undisturbed.path)}, contrast={"task": "spatial"})

    model, (source, _) = build_model(other), undisturbed.checkpoints.load()

    assert_identical(model.backbone.get_weights(), source.backbone.get_weights())
    assert_identical(
        model.objective.heads["P2_spatial"].get_weights(), source.objective.heads["P2_spatial"].get_weights()
    )
    assert model.steps_taken == 0 and source.steps_taken == 12
    with pytest.raises(RunError, match=r"weights of backbone r3d_tiny .* do not fit mc3_tiny"):
        build_model(changed(other, model={"backbone": "mc3_tiny"}))


@pytest.mark.slow
def test_the_loss_goes_down(class_folder, tmp_path):
    # All six training videos are in each batch. In batches of two, the loss depends on how similar the two videos are.
    optimizer = {"optimizer": "adamw", "learning_rate": 0.003, "warmup_epochs": 1}
    run = run_of(tmp_path, experiment_on(class_folder, epochs=75, batch_size=6, checkpoint_every=75, **optimizer))

    pretrain_run(run)

    losses = [float(row["loss"]) for row in run.read_metrics()]
    assert np.mean(losses[-15:]) < 0.75 * np.mean(losses[:15])


def test_videos_that_cannot_be_decoded_are_skipped_and_listed(class_folder, tmp_path):
    bad = class_folder / "across" / "9.mp4"
    bad.write_text("no video")
    experiment = changed(experiment_on(class_folder, epochs=2), data={"max_failed_share": 0.5})
    records = [
        replace(record, split="train") if record.path == str(bad) else record
        for record in load_videos(experiment).records
    ]
    run = run_of(tmp_path, experiment)

    outcome = pretrain(experiment, run, records)

    assert outcome.finished and list(outcome.failed_videos) == [str(bad)]
    with (run.path / "failures.csv").open() as file:
        assert "Invalid data" in next(csv.DictReader(file))["cause"]


@pytest.fixture
def a_bad_batch(monkeypatch):
    """The eighth batch of a run has a NaN in its fourth frame."""
    import tensorflow as tf

    from hdc_keras.data import pipeline

    windows_dataset = pipeline.windows_dataset

    def with_a_bad_batch(*arguments):
        nan = tf.one_hot(3, 4) * float("nan")
        return (
            windows_dataset(*arguments)
            .enumerate()
            .map(lambda i, x: tf.where(i == 7, nan[:, None, None, None], 0.0) + tf.cast(x, tf.float32))
        )

    monkeypatch.setattr(pipeline, "windows_dataset", with_a_bad_batch)


def test_a_non_finite_loss_stops_the_run_and_is_named(class_folder, tmp_path, a_bad_batch):
    run = run_of(tmp_path, experiment_on(class_folder))

    with pytest.raises(TrainingError, match=r"step 8: P2_spatial_loss.*step-000000006.keras was saved before it"):
        pretrain_run(run)

    assert [file.name for file in run.checkpoints.files()] == ["step-000000003.keras", "step-000000006.keras"]
    assert all(np.isfinite(weight).all() for weight in weights_of(run))


def test_a_step_with_a_non_finite_loss_is_skipped_and_counted(class_folder, tmp_path, a_bad_batch):
    run = run_of(tmp_path, experiment_on(class_folder, on_nan="skip"))

    outcome = pretrain_run(run)

    assert outcome.finished and (outcome.step, outcome.skipped) == (12, 1)
    assert [row["skipped_steps"] for row in run.read_metrics()] == ["0.0", "0.0", "1.0", "1.0"]
    assert all(np.isfinite(weight).all() for weight in weights_of(run))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_earlier_checkpoints_intact(class_folder, tmp_path):
    run = run_of(tmp_path, experiment_on(class_folder))

    class FullDisk(keras.callbacks.Callback):
        """From the second epoch on, the system refuses files as large as a checkpoint."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(RunError, match=r"step-000000006.keras cannot be written \(File too large\)"):
            pretrain_run(run, callbacks=[FullDisk()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, handler)

    remaining = {file.name for file in run.checkpoints.folder.iterdir()}
    assert remaining == {"step-000000003.keras", "best.keras"}
    assert run.checkpoints.load()[0].steps_taken == 3


MEMORY_OPTIONS = {"micro_batches": 2, "accumulate": "plain", "rematerialise": True, "clip_norm": 1.0}


def test_the_config_reaches_the_training_step(class_folder):
    experiment = experiment_on(class_folder, batch_size=4, precision="mixed_float16", jit="on", **MEMORY_OPTIONS)

    model = compiled_model(experiment, Length(1, 1), Distribution(experiment.train))

    assert model.step_options == StepOptions(**MEMORY_OPTIONS, shuffle_statistics=True)
    assert model.jit_compile is True
    assert hasattr(model.optimizer, "inner_optimizer")  # scales the loss
    assert model.backbone.layers[-1].dtype_policy.name == "mixed_float16"
    assert keras.config.dtype_policy().name == "float32"  # the global policy is restored


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"micro_batches": 2}, {"rematerialise": True}, {"precision": "mixed_float16"}])
def test_options_that_save_memory_run_to_the_end(class_folder, tmp_path, options):
    run = run_of(tmp_path, experiment_on(class_folder, epochs=2, optimizer="lars", clip_norm=1.0, **options))

    outcome = pretrain_run(run)

    assert outcome.finished and outcome.step == 6 and outcome.skipped == 0
    model, _ = run.checkpoints.load(compiled=True)
    assert model.backbone.layers[-1].dtype_policy.name == options.get("precision", "float32")
    assert hasattr(model.optimizer, "inner_optimizer") == ("precision" in options)


def test_a_seed_gives_the_same_weights(class_folder):
    experiment = experiment_on(class_folder)
    one, same = (build_model(experiment).get_weights() for _ in range(2))
    other = build_model(experiment.model_copy(update={"seed": 1})).get_weights()

    assert_identical(one, same)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


HOLDER = """
import sys, time
from hdc_keras.runs.directory import RunDirectory
with RunDirectory(sys.argv[1]).sole_training():
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process():
    """Start another process that has the lock of a run."""
    started = []

    def train(run):
        started.append(subprocess.Popen([sys.executable, "-c", HOLDER, run.path], stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "locked\n"
        return started[-1].pid

    yield train
    for process in started:
        process.kill()
        process.wait()


def files_of(run):
    return {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_run_that_another_process_trains_cannot_be_trained_or_replaced_from_python(
    class_folder, tmp_path, other_process
):
    run = run_of(tmp_path, experiment_on(class_folder))
    before = files_of(run)
    pid = other_process(run)

    for train in (partial(pretrain_run, run), partial(run.create, run.experiment())):
        with pytest.raises(RunError, match=f"is being trained by process {pid} on"):
            train()
    assert files_of(run) == before


def test_a_run_is_locked_while_it_is_trained_from_python(class_folder, tmp_path):
    run, held = run_of(tmp_path, experiment_on(class_folder, epochs=1)), []

    pretrain_run(run, callbacks=[AfterSteps(2, lambda: held.append(locks.is_held(run.path / "training")))])

    assert held == [True] and not locks.is_held(run.path / "training")


SUSPENDED = """
import sys
from hdc_keras import locks
from hdc_keras.runs.directory import RunDirectory
from tests.training.small_runs import AfterSteps, pretrain_run
locks.LEASE_S = 1.0

def wait():
    print("in the second epoch", flush=True)
    sys.stdin.readline()

pretrain_run(RunDirectory(sys.argv[1]), callbacks=[AfterSteps(4, wait)])
"""


def test_a_process_whose_lock_was_taken_over_while_it_was_suspended_writes_nothing_more(
    class_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "LEASE_S", 1.0)
    run = run_of(tmp_path, experiment_on(class_folder))
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED, run.path],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "in the second epoch\n"
        process.send_signal(signal.SIGSTOP)
        with locks.exclusive(run.path / "training"):
            before = files_of(run)
            process.send_signal(signal.SIGCONT)
            _, said = process.communicate("\n", timeout=120)
            assert locks.lock_file(run.path / "training").exists()
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 1
    assert f"RunError: {run.path} is being trained by process {os.getpid()} on" in said
    assert "The other process continues; this one stops and writes nothing more." in said
    assert files_of(run) == before
    assert [file.name for file in run.checkpoints.files()] == ["step-000000003.keras"]
