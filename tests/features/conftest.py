"""A small frozen network and its settings, shared by the tests of feature extraction."""

import pytest

from hdc_keras import HDC, R3D
from hdc_keras.config import Experiment
from hdc_keras.data.loading import FrameStore
from hdc_keras.features.encoder import ClipEncoder

EXPERIMENT = Experiment.model_validate(
    {
        "data": {"frames": 4, "stride": 1, "decode_size": (20, 20), "max_failed_share": 0.5},
        "views": {"size": 16},
        "evaluate": {"clips": 3, "batch_size": 8},
    }
)


@pytest.fixture(scope="session")
def experiment():
    return EXPERIMENT


@pytest.fixture(scope="session")
def small_model():
    return HDC(R3D([4, 4, 6, 8], [1, 1, 1, 1]), EXPERIMENT.views, {"embedding_dim": 8})


@pytest.fixture(scope="session")
def encoder(small_model):
    return ClipEncoder(small_model, (20, 20))


@pytest.fixture
def store():
    return FrameStore((20, 20), 0.1)
