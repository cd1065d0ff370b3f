"""The length of a run: in epochs, in steps, or as long as a time budget lasts."""

import pytest
from hdc_keras_cli.experiments import resolve
from hdc_keras_cli.time_spans import seconds_of

import hdc_keras.config
from hdc_keras.config import Length, TrainConfig
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.errors import ConfigError
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.time_budget import steps_within
from tests.training.small_runs import AfterSteps, assert_identical, experiment_on, pretrain_run, run_of, weights_of


def test_epochs_are_passes_over_the_videos():
    assert TrainConfig(epochs=4).length(steps_per_pass=5) == Length(5, 20)
    assert TrainConfig().length(steps_per_pass=5).epochs == 200


@pytest.mark.parametrize("steps_per_pass, steps_per_epoch, epochs", [(7, 105, 10), (100, 100, 10), (3700, 3700, 1)])
def test_with_steps_an_epoch_is_whole_passes_of_a_hundred_steps_or_more(steps_per_pass, steps_per_epoch, epochs):
    length = TrainConfig(steps=1000).length(steps_per_pass)

    assert length == Length(steps_per_epoch, 1000) and length.epochs == epochs


def test_the_last_epoch_may_be_shorter():
    length = Length(steps_per_epoch=6, steps=8)

    assert [length.epochs_after(step) for step in (0, 5, 6, 7, 8)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("given, epochs, steps", [("train.steps=50", None, 50), ("train.epochs=3", 3, None)])
@pytest.mark.parametrize("config", ["videos", "videos-cpu"])  # one gives epochs, the other one steps
def test_what_the_user_sets_replaces_the_length_in_the_config(config, given, epochs, steps):
    train = resolve(config, None, None, [given], smoke=False).train

    assert (train.epochs, train.steps) == (epochs, steps)


def test_two_lengths_are_refused():
    with pytest.raises(ConfigError, match=r"epochs \(3\) and steps \(50\) are both given"):
        resolve("videos", None, None, ["train.epochs=3", "train.steps=50"], smoke=False)


@pytest.mark.parametrize("stopped_after", [3, 7])
def test_a_run_of_some_steps_ends_with_a_short_epoch_and_resumes_exactly(
    class_folder, tmp_path, monkeypatch, stopped_after
):
    monkeypatch.setattr(hdc_keras.config, "_LEAST_STEPS_PER_EPOCH", 5)  # two passes of three steps
    experiment = experiment_on(class_folder, epochs=None, steps=8, knn_every=1)
    whole, parts = run_of(tmp_path, experiment, "whole"), run_of(tmp_path, experiment, "parts")

    outcome = pretrain_run(whole)
    assert (outcome.step, outcome.epochs, outcome.finished) == (8, 2, True)
    rows = whole.read_metrics()
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(1, 6), (2, 8)]
    assert all(row["knn_train_label"] for row in rows)
    assert [file.name for file in whole.checkpoints.files()] == ["step-000000006.keras", "step-000000008.keras"]

    with pytest.raises(KeyboardInterrupt):
        pretrain_run(parts, callbacks=[AfterSteps(stopped_after, _interrupt)])
    outcome = pretrain_run(parts, resume=True, warn=lambda text: None)
    assert outcome.finished
    assert_identical(weights_of(parts), weights_of(whole))


def _interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "text, seconds", [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5H", 5400), ("2d", 172_800)]
)
def test_lengths_of_time(text, seconds):
    assert seconds_of("--time-budget", text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "30m1h", "0s", "half an hour", "1e3s"])
def test_other_texts_are_no_lengths_of_time(text):
    with pytest.raises(ConfigError, match=r"--time-budget .*: expected a length of time with its unit, as in 90s"):
        seconds_of("--time-budget", text)


def test_twice_the_time_is_enough_for_twice_the_steps(class_folder):
    experiment = experiment_on(class_folder)
    records = load_videos(experiment).records

    steps, seconds = steps_within(1000, experiment, records, Distribution(experiment.train))
    assert steps * seconds == pytest.approx(900, rel=0.1)
    with pytest.raises(ConfigError, match=r"--time-budget: 1 s are too short. Building the model took"):
        steps_within(1, experiment, records, Distribution(experiment.train))
