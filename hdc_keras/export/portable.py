"""The encoder made of operations that every runtime has, as a TensorFlow graph without variables."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.model import HDC

Tensor = Any


@dataclass(frozen=True)
class FrozenEncoder:
    """A graph whose weights are constants.

    Attributes:
        function: TensorFlow's concrete function.
        output_names: names of its outputs, in their order.
    """

    function: Any
    output_names: list[str]


def freeze(encoder: ClipEncoder) -> FrozenEncoder:
    """The encoder from uint8 video (batch, time, height, width, 3), all lengths unknown, to its outputs."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    def encode(video: Tensor) -> dict[str, Tensor]:
        # Frames of the encoder's own size are left as they are, so it meets no operation that runtimes lack.
        return encoder.call(resize_by_matrices(video, encoder.frame_size))

    signature = tf.TensorSpec((None, None, None, None, 3), tf.uint8, name="video")
    traced = tf.function(encode, input_signature=[signature]).get_concrete_function()
    # TensorFlow gives the outputs of a dict in the order of its sorted keys.
    return FrozenEncoder(convert_variables_to_constants_v2(traced), sorted(traced.structured_outputs))


def resize_by_matrices(video: Tensor, size: tuple[int, int]) -> Tensor:
    """As `encoder.resize_frames`, of any height and width: antialiased bilinear, but as two matrix products."""
    batch, time, height, width = ops.shape(video)[:4]
    rows = ops.reshape(ops.cast(video, "float32"), (batch * time, height, width * 3))
    rows = ops.matmul(_resize_matrix(height, size[0])[None], rows)
    columns = ops.reshape(rows, (batch * time * size[0], width, 3))
    columns = ops.matmul(_resize_matrix(width, size[1])[None], columns)
    return ops.reshape(columns, (batch, time, *size, 3))


def _resize_matrix(length: Tensor, size: int) -> Tensor:
    """(size, length): row i holds the weights of the source pixels that make pixel i of the result."""
    step = ops.cast(length, "float32") / size
    centre = (ops.arange(size, dtype="float32") + 0.5) * step - 0.5
    place = ops.cast(ops.arange(length), "float32")
    reach = ops.maximum(step, 1.0)  # when shrinking, the filter widens so that no pixel is passed over
    weights = ops.maximum(1.0 - ops.abs(place[None] - centre[:, None]) / reach, 0.0)
    return weights / ops.sum(weights, axis=1, keepdims=True)


def in_float32(model: HDC) -> HDC:
    """The model itself, or its copy that computes in float32 where it computes in another precision.

    Other runtimes lack bfloat16, and their rounding in half precision is not TensorFlow's. The weights are float32 in
    any case.
    """
    config = model.get_config()
    float32 = keras.dtype_policies.serialize(keras.DTypePolicy("float32"))
    if config["dtype"] == config["backbone"]["config"]["dtype"] == float32:
        return model
    config["dtype"] = config["backbone"]["config"]["dtype"] = float32
    copy = HDC.from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def with_flat_poolings(network: keras.Model) -> keras.Model:
    """A copy of a functional network in which two poolings in 2D stand for each one in 3D."""

    def cloned(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.MaxPooling3D):
            return FlatMaxPooling(layer.pool_size, layer.strides, name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=cloned)
    copy.set_weights(network.get_weights())
    return copy


class FlatMaxPooling(keras.layers.Layer):
    """3D max pooling without padding as two in 2D, which is exact: the greatest of a box is the greatest over time of
    the greatest of each frame.

    Args:
        pool_size: of the 3D pooling.
        strides: of the 3D pooling.
    """

    def __init__(self, pool_size: tuple[int, int, int], strides: tuple[int, int, int], **kwargs: Any):
        super().__init__(**kwargs)
        self.pool_size = pool_size
        self.strides = strides

    def call(self, clips: Tensor) -> Tensor:
        """Pool (batch, time, height, width, channels)."""
        batch, time, height, width, channels = ops.shape(clips)
        frames = ops.reshape(clips, (batch * time, height, width, channels))
        frames = ops.max_pool(frames, self.pool_size[1:], self.strides[1:], data_format="channels_last")
        height, width = ops.shape(frames)[1:3]
        frames = ops.reshape(frames, (batch, time, height * width, channels))
        pooled = ops.max_pool(frames, (self.pool_size[0], 1), (self.strides[0], 1), data_format="channels_last")
        return ops.reshape(pooled, (batch, ops.shape(pooled)[1], height, width, channels))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shape of the pooled clips."""
        pooled = [
            None if length is None else (length - size) // stride + 1
            for length, size, stride in zip(input_shape[1:4], self.pool_size, self.strides, strict=True)
        ]
        return (input_shape[0], *pooled, input_shape[4])
