import pytest

from hdc_keras.training.models import build_model
from tests.training.small_runs import experiment_on, run_of


@pytest.fixture
def experiment(tmp_path):
    return experiment_on(tmp_path / "videos")


@pytest.fixture
def run(tmp_path, experiment):
    return run_of(tmp_path, experiment)


@pytest.fixture
def model(experiment):
    """The model of `run`, untrained."""
    return build_model(experiment)
