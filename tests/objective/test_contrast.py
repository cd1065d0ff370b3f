import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.objective.contrast import embedding_deviation
from tests.objective.test_losses import unit


def deviation(embeddings):
    return float(embedding_deviation(ops.convert_to_tensor(embeddings)))


def test_the_deviation_of_embeddings_is_1_if_they_are_spread_evenly_and_0_if_they_are_equal():
    spread = unit(20_000, 16)
    equal, zero = np.repeat(unit(1, 16), 8, axis=0), np.zeros((8, 16), "float32")

    assert deviation(spread) == pytest.approx(1, abs=1e-3)
    assert deviation(equal) < 1e-6 and deviation(zero) == 0


@pytest.mark.parametrize("cosine", [0.0, 0.9, 0.9975])
def test_the_deviation_is_the_root_of_one_minus_the_mean_cosine(cosine):
    """Of all pairs, those of a video with itself included. For many videos, 0.05 means a cosine of 0.9975."""
    vectors = np.eye(33, dtype="float32")[:32] * (1 - cosine) ** 0.5
    vectors[:, 32] = cosine**0.5

    mean_cosine = float((vectors @ vectors.T).mean())

    assert deviation(vectors) == pytest.approx((1 - mean_cosine) ** 0.5, abs=1e-4)


def test_the_deviation_has_no_gradient():
    class OneVariable(keras.Model):
        def __init__(self):
            super().__init__()
            self.free = self.add_weight(shape=(4, 3), initializer="ones")

        def call(self, x):
            return x

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return ops.sum(self.free) + embedding_deviation(ops.convert_to_tensor(self.free))

    model = OneVariable()
    model.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    model.train_on_batch(np.zeros((1, 1), "float32"))

    np.testing.assert_array_equal(ops.convert_to_numpy(model.free), np.zeros((4, 3)))
