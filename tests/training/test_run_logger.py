import itertools

import keras
import pytest

from hdc_keras.data.loading import DecodeFailures
from hdc_keras.errors import VideoDecodeError
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training import run_logger
from hdc_keras.training.run_logger import RunLogger


def logger_of(run, first_epoch=0, failures=None, measure=lambda epoch: {}, waited=None, steps=2):
    logger = RunLogger(run, first_epoch, failures or DecodeFailures(10, 1.0), 12, measure, waited)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.25))
    model.steps_taken = 5
    logger.set_model(model)
    logger.set_params({"steps": steps})
    return logger


def log_epoch(logger, epoch, steps=2, **logs):
    logger.on_epoch_begin(epoch)
    for step in range(steps):
        logger.on_train_batch_end(step)
    logger.on_epoch_end(epoch, logs)
    return logs


@pytest.fixture
def ten_seconds_an_epoch(monkeypatch):
    times = itertools.count(0, 10)
    monkeypatch.setattr(run_logger.time, "monotonic", lambda: next(times))


def test_rates_are_measured_for_each_epoch(tmp_path, ten_seconds_an_epoch):
    waited = iter([1.0, 4.0, 4.0, 4.5])
    logger = logger_of(RunDirectory(tmp_path), waited=lambda: next(waited))

    first, second = log_epoch(logger, 0, loss=3.0), log_epoch(logger, 1, loss=2.0)

    assert first == {"loss": 3.0, "clips_per_second": 2.4, "data_wait_share": 0.3, "learning_rate": 0.25}
    assert second["data_wait_share"] == pytest.approx(0.05)


def test_measurements_are_logged_beside_the_loss(tmp_path):
    logger = logger_of(
        RunDirectory(tmp_path), measure=lambda epoch: {"knn_train_label": epoch / 10} if epoch == 2 else {}
    )

    assert "knn_train_label" not in log_epoch(logger, 0, loss=3.0)
    assert log_epoch(logger, 1, loss=2.0)["knn_train_label"] == 0.2
    assert [row["knn_train_label"] for row in RunDirectory(tmp_path).read_metrics()] == ["", "0.2"]


def test_rows_after_the_checkpoint_are_dropped_when_a_run_resumes(tmp_path):
    run = RunDirectory(tmp_path)
    logger = logger_of(run)
    for epoch in range(3):
        log_epoch(logger, epoch, loss=3.0 - epoch)

    log_epoch(logger_of(run, first_epoch=1), 1, loss=0.5)

    assert [(row["epoch"], row["loss"]) for row in run.read_metrics()] == [("1", "3.0"), ("2", "0.5")]


def test_an_epoch_that_was_stopped_has_no_row(tmp_path):
    log_epoch(logger_of(RunDirectory(tmp_path), steps=3), 0, steps=2, loss=3.0)

    assert RunDirectory(tmp_path).read_metrics() == []


def test_bad_videos_are_counted_and_listed(tmp_path):
    failures = DecodeFailures(10, 1.0)
    logger = logger_of(RunDirectory(tmp_path), failures=failures)
    log_epoch(logger, 0, loss=3.0)
    assert not (tmp_path / "failures.csv").exists()

    failures.add(VideoDecodeError("b.mp4", "no stream"), "b")
    failures.add(VideoDecodeError("a.mp4", "truncated"), "a")
    log_epoch(logger, 1, loss=3.0)

    assert [row["videos_failed"] for row in RunDirectory(tmp_path).read_metrics()] == ["0", "2"]
    assert (tmp_path / "failures.csv").read_text() == "path,cause\na.mp4,truncated\nb.mp4,no stream\n"
