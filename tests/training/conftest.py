import pytest

from hdc_keras.runs.directory import RunDirectory
from tests.conftest import write_class_folder
from tests.training.small_runs import experiment_on, pretrain_run, run_of


@pytest.fixture
def deterministic_ops():
    """Make TensorFlow deterministic. Otherwise threads add in any order, and 12 training steps differ between runs."""
    import tensorflow as tf
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    tf.config.experimental.enable_op_determinism()
    yield
    config.disable_op_determinism()


@pytest.fixture
def undisturbed(once, deterministic_ops):
    """A finished run, made once per session and read-only. The folder of its videos is beside it."""

    def make(folder):
        run = run_of(folder, experiment_on(write_class_folder(folder / "videos"), knn_every=2))
        outcome = pretrain_run(run)
        assert outcome.finished and (outcome.step, outcome.epochs) == (12, 4)
        assert not outcome.failed_videos and not outcome.skipped and outcome.signal is None

    return RunDirectory(once("undisturbed", make) / "run")
