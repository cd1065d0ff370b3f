"""The network as a TensorFlow graph without variables, built only from operations that ONNX and LiteRT support."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from hdc_keras.export.networks import Network

Tensor = Any


@dataclass(frozen=True)
class FrozenNetwork:
    """A TensorFlow graph whose weights are constants.

    Attributes:
        function: a concrete function of TensorFlow.
        output_names: names of its outputs, in order.
    """

    function: Any
    output_names: list[str]


def freeze(encoder: Network) -> FrozenNetwork:
    """Trace a network for uint8 video (batch, time, height, width, 3), with all axes but the last free."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    def encode(video: Tensor) -> dict[str, Tensor]:
        # The runtimes lack the encoder's own resizing. It skips that for frames that already have its frame size.
        return encoder.call(resize_by_matrices(video, encoder.frame_size))

    signature = tf.TensorSpec((None, None, None, None, 3), tf.uint8, name="video")
    traced = tf.function(encode, input_signature=[signature]).get_concrete_function()
    # TensorFlow returns the values of a dict in the order of its sorted keys.
    return FrozenNetwork(convert_variables_to_constants_v2(traced), sorted(traced.structured_outputs))


def resize_by_matrices(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear resizing like `encoder.resize_frames`, as two matrix products.

    Args:
        video: (batch, time, height, width, 3), of any height and width.
        size: (height, width) of the result.

    Returns:
        (batch, time, *size, 3) float32.
    """
    batch, time, height, width = ops.shape(video)[:4]
    rows = ops.reshape(ops.cast(video, "float32"), (batch * time, height, width * 3))
    rows = ops.matmul(_resize_matrix(height, size[0])[None], rows)
    columns = ops.reshape(rows, (batch * time * size[0], width, 3))
    columns = ops.matmul(_resize_matrix(width, size[1])[None], columns)
    return ops.reshape(columns, (batch, time, *size, 3))


def _resize_matrix(length: Tensor, size: int) -> Tensor:
    """(size, length) float32: row i holds the weights of the source pixels for pixel i of the result."""
    step = ops.cast(length, "float32") / size
    centre = (ops.arange(size, dtype="float32") + 0.5) * step - 0.5
    source = ops.cast(ops.arange(length), "float32")
    radius = ops.maximum(step, 1.0)  # Antialiasing: when shrinking, the filter must cover every source pixel.
    weights = ops.maximum(1.0 - ops.abs(source[None] - centre[:, None]) / radius, 0.0)
    return weights / ops.sum(weights, axis=1, keepdims=True)


def with_flat_poolings(network: keras.Model) -> keras.Model:
    """Copy a functional network, replacing each 3D max pooling by two in 2D."""

    def clone_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.MaxPooling3D):
            return FlatMaxPooling(layer.pool_size, layer.strides, name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=clone_layer)
    copy.set_weights(network.get_weights())
    return copy


class FlatMaxPooling(keras.layers.Layer):
    """3D max pooling without padding, computed as two 2D poolings: over each frame, then over time.

    The result is exact, because the maximum of a box is the maximum over time of its maxima per frame.

    Args:
        pool_size: (time, height, width) of the 3D pooling.
        strides: (time, height, width) of the 3D pooling.
    """

    def __init__(self, pool_size: tuple[int, int, int], strides: tuple[int, int, int], **kwargs: Any):
        super().__init__(**kwargs)
        self.pool_size = pool_size
        self.strides = strides

    def call(self, clips: Tensor) -> Tensor:
        """Pool clips (batch, time, height, width, channels)."""
        batch, time, height, width, channels = ops.shape(clips)
        frames = ops.reshape(clips, (batch * time, height, width, channels))
        frames = ops.max_pool(frames, self.pool_size[1:], self.strides[1:], data_format="channels_last")
        height, width = ops.shape(frames)[1:3]
        frames = ops.reshape(frames, (batch, time, height * width, channels))
        pooled = ops.max_pool(frames, (self.pool_size[0], 1), (self.strides[0], 1), data_format="channels_last")
        return ops.reshape(pooled, (batch, ops.shape(pooled)[1], height, width, channels))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shape of the pooled clips; unknown lengths are `None`."""
        pooled = [
            None if length is None else (length - size) // stride + 1
            for length, size, stride in zip(input_shape[1:4], self.pool_size, self.strides, strict=True)
        ]
        return (input_shape[0], *pooled, input_shape[4])
