"""Projection heads: one for each level and task."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

Tensor = Any


def unit_length(vectors: Tensor) -> Tensor:
    """L2-normalise (..., channels), in float32.

    A zero vector, which ReLUs can produce, stays zero and has a zero gradient. The gradient of `keras.ops.normalize`
    there is NaN on JAX and very large elsewhere. Zero means a length of at most 1e-6.
    """
    vectors = ops.cast(vectors, "float32")
    squared_length = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    scale = ops.rsqrt(ops.maximum(squared_length, 1e-12))
    return vectors * ops.where(squared_length > 1e-12, scale, 0.0)


@keras.saving.register_keras_serializable(package="hdc_keras")
class ProjectionHead(layers.Layer):
    """Two-layer perceptron with batch norm, then L2 normalisation (our choice, after SimCLR, arXiv 2002.05709).

    Args:
        embedding_dim: width of the embedding.
        hidden_dim: width of the hidden layer; the width of the input when `None`.
    """

    def __init__(self, embedding_dim: int = 128, hidden_dim: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.embedding_dim = embedding_dim
        self.hidden_dim = hidden_dim

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the layers for features (batch, channels)."""
        width = self.hidden_dim or input_shape[-1]
        policy = self.dtype_policy
        self.hidden = layers.Dense(width, use_bias=False, dtype=policy, name="hidden")
        self.norm = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=policy, name="norm")
        self.projection = layers.Dense(self.embedding_dim, dtype=policy, name="projection")
        self.hidden.build(input_shape)
        self.norm.build((None, width))
        self.projection.build((None, width))

    def call(self, features: Tensor, training: bool | None = None) -> Tensor:
        """(batch, channels) -> (batch, embedding_dim) float32 of unit length, whatever the compute dtype."""
        x = ops.relu(self.norm(self.hidden(features), training=training))
        return unit_length(self.projection(x))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, int]:
        """(batch, embedding_dim)."""
        return (input_shape[0], self.embedding_dim)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {**super().get_config(), "embedding_dim": self.embedding_dim, "hidden_dim": self.hidden_dim}
