import keras
import numpy as np
from keras import ops

from hdc_keras.contrast.heads import ProjectionHead

FEATURES = np.random.default_rng(0).normal(size=(6, 20)).astype("float32")


def test_embeddings_are_float32_of_unit_length_under_mixed_precision():
    head = ProjectionHead(16, dtype="mixed_bfloat16")
    embeddings = ops.convert_to_numpy(head(FEATURES, training=True))

    assert embeddings.shape == (6, 16) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)


def test_it_is_a_two_layer_perceptron_with_batch_norm():
    head = ProjectionHead(16, 32)
    head.build((None, 20))

    assert sum(int(np.prod(v.shape)) for v in head.trainable_variables) == 20 * 32 + 2 * 32 + 32 * 16 + 16


def test_its_config_rebuilds_it():
    head = ProjectionHead(16, 32, name="h")

    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head)).get_config() == (
        head.get_config()
    )
