"""Depthwise 3D convolution on every backend."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from hdc_keras.backbones.video_backbone import Tensor


@keras.saving.register_keras_serializable(package="hdc_keras")
class DepthwiseConvolution(layers.Layer):
    """3D convolution of each channel by itself, padded by half the kernel on both sides, without a bias.

    Keras has no such layer. A grouped `Conv3D` computes the same, but only PyTorch has a kernel for it: forward and
    backward pass of 2 x 13 x 40 x 40 x 54 values took 5.0 s on TensorFlow's CPU, and more than a minute on JAX's. As
    one depthwise 2D convolution for each frame of the kernel, added up, they took 0.05 s on TensorFlow, and 0.9 s as 27
    shifted products (2 cores of an x86 machine, shared). Those 2D kernels are also what GPUs, TPUs and exported models
    have.

    Args:
        kernel_size: (time, height, width), odd numbers.
        stride: stride along height and width. All frames are kept.
        **kwargs: `name`, `dtype`, `trainable`.

    Input: (batch, time, height, width, channels). Output: the same with height and width divided by the stride, rounded
    up.
    """

    def __init__(self, kernel_size: Sequence[int], stride: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.kernel_size = list(kernel_size)
        self.stride = stride

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the kernel, (time, height, width, channels)."""
        time, height, width = self.kernel_size
        # He initialisation over the fan-out, which is the size of the kernel if each channel has its own.
        stddev = (2.0 / (time * height * width)) ** 0.5
        self.kernel = self.add_weight(
            shape=(*self.kernel_size, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=stddev),
            name="kernel",
        )

    def call(self, clips: Tensor) -> Tensor:
        """Convolve (batch, time, height, width, channels)."""
        length = ops.shape(clips)[1]
        padded = ops.pad(clips, [(0, 0), *((size // 2, size // 2) for size in self.kernel_size), (0, 0)])
        kernel = ops.convert_to_tensor(self.kernel)
        if keras.backend.backend() == "torch":
            kernel = ops.expand_dims(kernel, 3)
            return ops.conv(padded, kernel, (1, self.stride, self.stride), "valid", data_format="channels_last")
        result = None
        for place in range(self.kernel_size[0]):
            frames = self._convolve_frames(padded[:, place : place + length], kernel[place])
            result = frames if result is None else result + frames
        return result

    def _convolve_frames(self, clips: Tensor, kernel: Tensor) -> Tensor:
        if self.kernel_size[1:] == [1, 1] and self.stride == 1:
            return clips * kernel
        batch, time, height, width, channels = ops.shape(clips)
        frames = ops.reshape(clips, (batch * time, height, width, channels))
        kernel = ops.expand_dims(kernel, -1)
        frames = ops.depthwise_conv(frames, kernel, self.stride, "valid", data_format="channels_last")
        return ops.reshape(frames, (batch, time, *ops.shape(frames)[1:]))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape with height and width divided by the stride."""
        batch, time, *sizes, channels = input_shape
        return (batch, time, *(None if size is None else -(-size // self.stride) for size in sizes), channels)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {**super().get_config(), "kernel_size": self.kernel_size, "stride": self.stride}
