"""Layers that the backbones share."""

from typing import Any

import keras
from keras import layers

from hdc_keras.backbones.video_backbone import Tensor

# As in torchvision, whose weights these networks can load. The default epsilon of Keras is 1e-3.
_BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}


# Differences of neighbouring frames are several times smaller than normalised frames. Without this factor (our choice),
# the first convolution would start out almost blind to them.
_DIFFERENCE_SCALE = 4.0


def frame_differences(clips: Tensor, dtype: Any) -> Tensor:
    """Each frame's difference from the frame before it, times 4; zero for the first frame.

    It consists of layers that are part of Keras, so that exported networks load without this package.
    """
    options = {"data_format": "channels_last", "dtype": dtype}
    later = layers.Cropping3D(((1, 0), (0, 0), (0, 0)), name="later_frames", **options)(clips)
    earlier = layers.Cropping3D(((0, 1), (0, 0), (0, 0)), name="earlier_frames", **options)(clips)
    difference = layers.Subtract(dtype=dtype, name="difference")([later, earlier])
    # Scaled after the padding: if the stem's padding came directly after it, TensorFlow 2.21 would drop one of them in
    # graphs of unknown length.
    difference = layers.ZeroPadding3D(((1, 0), (0, 0), (0, 0)), name="difference_pad", **options)(difference)
    return layers.Rescaling(_DIFFERENCE_SCALE, dtype=dtype, name="frame_differences")(difference)


def convolution(
    x: Tensor,
    filters: int,
    kernel: tuple[int, int, int],
    strides: tuple[int, int, int],
    name: str,
    dtype: Any,
    use_bias: bool = False,
) -> Tensor:
    """3D convolution `{name}_conv`, padded equally on both sides, as in PyTorch.

    With strides greater than 1, the "same" padding of Keras is uneven, so a padding layer is added instead.
    """
    padding = "same"
    if max(strides) > 1 and max(kernel) > 1:
        x = padded_by(x, kernel, f"{name}_pad", dtype)
        padding = "valid"
    # He initialisation over the fan-out, as in torchvision's video models.
    return layers.Conv3D(
        filters,
        kernel,
        strides,
        padding=padding,
        data_format="channels_last",
        use_bias=use_bias,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        dtype=dtype,
        name=f"{name}_conv",
    )(x)


def batch_norm(x: Tensor, name: str, dtype: Any, **options: Any) -> Tensor:
    """Batch norm `{name}_norm`."""
    return layers.BatchNormalization(**{**_BATCH_NORM, **options}, dtype=dtype, name=f"{name}_norm")(x)


def relu(x: Tensor, name: str, dtype: Any) -> Tensor:
    """ReLU `{name}_relu`."""
    return layers.ReLU(dtype=dtype, name=f"{name}_relu")(x)


def max_pool(
    x: Tensor, size: tuple[int, int, int], strides: tuple[int, int, int], name: str, dtype: Any, padded: bool = False
) -> Tensor:
    """Max pooling `{name}_pool`, optionally `padded` on both sides by half its size.

    The input must be non-negative, as the output of a ReLU is. Padding with zeros then has the same effect as PyTorch's
    padding with -infinity.
    """
    if padded:
        x = padded_by(x, size, f"{name}_pool_pad", dtype)
    return layers.MaxPooling3D(size, strides, data_format="channels_last", dtype=dtype, name=f"{name}_pool")(x)


def padded_by(x: Tensor, kernel: tuple[int, int, int], name: str, dtype: Any) -> Tensor:
    """Pad time, height and width with zeros on both sides, by half the kernel size."""
    amount = tuple(k // 2 for k in kernel)
    return layers.ZeroPadding3D(amount, data_format="channels_last", dtype=dtype, name=name)(x)
