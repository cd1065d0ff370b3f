"""Layers of transformers that keep the axes (time, height, width) of their tokens."""

from typing import Any

import keras
from keras import layers, ops

from hdc_keras.backbones.video_backbone import Tensor


@keras.saving.register_keras_serializable(package="hdc_keras")
class QueryKeyValue(layers.Layer):
    """Queries, keys and values of every token, from one matrix product.

    Only queries and values have a bias, as in VideoMAE and BEiT: a bias of the keys adds the same number to all scores
    of a query, which the softmax takes away again.

    Args:
        channels: channels of the queries, and as many of the keys and of the values.
        **kwargs: `name`, `dtype`, `trainable`.

    Input: (..., input channels). Output: (..., 3 * channels).
    """

    def __init__(self, channels: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.channels = channels

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the kernel and the two biases."""
        self.kernel = self.add_weight(
            shape=(input_shape[-1], 3 * self.channels),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="kernel",
        )
        self.query_bias = self.add_weight(shape=(self.channels,), initializer="zeros", name="query_bias")
        self.value_bias = self.add_weight(shape=(self.channels,), initializer="zeros", name="value_bias")

    def call(self, tokens: Tensor) -> Tensor:
        """Project the tokens."""
        key_bias = ops.zeros((self.channels,), dtype=self.compute_dtype)
        return ops.matmul(tokens, self.kernel) + ops.concatenate([self.query_bias, key_bias, self.value_bias])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape with 3 * channels."""
        return (*input_shape[:-1], 3 * self.channels)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {**super().get_config(), "channels": self.channels}


@keras.saving.register_keras_serializable(package="hdc_keras")
class SelfAttention(layers.Layer):
    """Scaled dot-product attention of all tokens of a clip to each other, over time and space at once.

    It has no weights. Keras picks the kernel: PyTorch and JAX have fused ones, which do not keep the scores.

    Args:
        num_heads: number of attention heads, which share the channels evenly.
        **kwargs: `name`, `dtype`.

    Input: queries, keys and values, (batch, time, height, width, 3 * channels). Output: (batch, time, height, width,
    channels).
    """

    def __init__(self, num_heads: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def call(self, joined: Tensor) -> Tensor:
        """Let the tokens attend to each other."""
        batch, time, height, width = ops.shape(joined)[:4]
        channels = joined.shape[-1] // 3
        heads = (batch, time * height * width, self.num_heads, channels // self.num_heads)
        query, key, value = (ops.reshape(part, heads) for part in ops.split(joined, 3, axis=-1))
        attended = ops.dot_product_attention(query, key, value)
        return ops.reshape(attended, (batch, time, height, width, channels))

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """The input's shape with a third of the channels."""
        return (*input_shape[:-1], input_shape[-1] // 3)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {**super().get_config(), "num_heads": self.num_heads}
