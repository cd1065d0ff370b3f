import keras
import numpy as np
from keras import ops

from hdc_keras.objective.heads import ProjectionHead, unit_length

FEATURES = np.random.default_rng(0).normal(size=(6, 20)).astype("float32")


def test_embeddings_are_float32_of_unit_length_under_mixed_precision():
    head = ProjectionHead(16, dtype="mixed_bfloat16")
    embeddings = ops.convert_to_numpy(head(FEATURES, training=True))

    assert embeddings.shape == (6, 16) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)


def test_a_head_is_a_two_layer_perceptron_with_batch_norm():
    head = ProjectionHead(16, 32)
    head.build((None, 20))

    assert sum(int(np.prod(v.shape)) for v in head.trainable_variables) == 20 * 32 + 2 * 32 + 32 * 16 + 16


def test_a_zero_vector_stays_zero_and_has_a_zero_gradient():
    vectors = np.float32([[0, 0, 0], [3, 4, 0]])
    np.testing.assert_allclose(ops.convert_to_numpy(unit_length(vectors)), [[0, 0, 0], [0.6, 0.8, 0]], atol=1e-6)

    # One step of training moves the input of unit_length along its gradient, on any backend.
    model = keras.Sequential([keras.layers.Dense(3, kernel_initializer="zeros"), keras.layers.Lambda(unit_length)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.train_on_batch(vectors, np.ones((2, 3), "float32"))

    assert all((value == 0).all() for value in model.get_weights())


def test_a_head_is_rebuilt_from_its_config():
    head = ProjectionHead(16, 32, name="h")

    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head)).get_config() == (
        head.get_config()
    )
