"""X3D: small networks of depthwise 3D convolutions (Feichtenhofer, CVPR 2020, arXiv 2004.04730)."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from hdc_keras.backbones.blocks import batch_norm, convolution, relu
from hdc_keras.backbones.depthwise import DepthwiseConvolution
from hdc_keras.backbones.video_backbone import Tensor, VideoBackbone, clip_input

# As published.
_EXPANSION = 2.25
_SQUEEZE = 0.0625


@keras.saving.register_keras_serializable(package="hdc_keras")
class X3D(VideoBackbone):
    """A residual network of inverted bottlenecks, whose only convolutions over time are depthwise.

    A block widens its input 2.25 times, convolves each channel by itself (3 x 3 x 3), and narrows it again. Every
    second block, from the first of a stage on, weights its channels by their means (squeeze-and-excitation). The stem
    and each stage halve height and width; all frames are kept.

    The levels P2 to P5 are the four stages. The published network has another 1 x 1 x 1 convolution before its global
    pooling; it belongs to the classifier here, as in the author's code.

    Args:
        stackwise_num_filters: channels of each stage. The stem has as many as the first.
        stackwise_num_blocks: blocks of each stage.
        input_shape: (time, height, width, 3); unknown lengths are `None`.
        dtype: dtype or policy of the layers.
        **kwargs: `name`, `trainable`.

    Raises:
        ValueError: the two lists differ in length.
    """

    def __init__(
        self,
        stackwise_num_filters: Sequence[int] = (24, 48, 96, 192),
        stackwise_num_blocks: Sequence[int] = (3, 5, 11, 7),
        input_shape: Sequence[int | None] = (None, None, None, 3),
        dtype: Any = None,
        **kwargs: Any,
    ):
        if len(stackwise_num_filters) != len(stackwise_num_blocks):
            raise ValueError(
                "`stackwise_num_filters` must have as many entries as `stackwise_num_blocks`. Received: "
                f"{stackwise_num_filters} and {stackwise_num_blocks}"
            )
        clips, x = clip_input(input_shape, dtype)
        x = convolution(x, stackwise_num_filters[0], (1, 3, 3), (1, 2, 2), "stem_spatial", dtype)
        x = DepthwiseConvolution((5, 1, 1), dtype=dtype, name="stem_conv")(x)
        x = relu(batch_norm(x, "stem", dtype), "stem", dtype)
        pyramid_outputs, block_outputs = {}, [x]
        for stage, (filters, blocks) in enumerate(zip(stackwise_num_filters, stackwise_num_blocks, strict=True), 2):
            for block in range(blocks):
                stride, excites = 2 if block == 0 else 1, block % 2 == 0
                x = _block(x, filters, stride, excites, f"stage{stage}_block{block + 1}", dtype)
                block_outputs.append(x)
            pyramid_outputs[f"P{stage}"] = x
        arguments = {
            "stackwise_num_filters": list(stackwise_num_filters),
            "stackwise_num_blocks": list(stackwise_num_blocks),
            "input_shape": list(input_shape),
            "dtype": dtype,
        }
        super().__init__(clips, pyramid_outputs, arguments, block_outputs, **kwargs)


def _block(x: Tensor, filters: int, stride: int, excites: bool, name: str, dtype: Any) -> Tensor:
    shortcut, middle = x, int(_EXPANSION * filters)
    if stride > 1 or x.shape[-1] != filters:
        shortcut = convolution(x, filters, (1, 1, 1), (1, stride, stride), f"{name}_shortcut", dtype)
        shortcut = batch_norm(shortcut, f"{name}_shortcut", dtype)
    x = convolution(x, middle, (1, 1, 1), (1, 1, 1), f"{name}_1", dtype)
    x = relu(batch_norm(x, f"{name}_1", dtype), f"{name}_1", dtype)
    x = DepthwiseConvolution((3, 3, 3), stride, dtype=dtype, name=f"{name}_2_conv")(x)
    x = batch_norm(x, f"{name}_2", dtype)
    if excites:
        x = _squeeze_and_excitation(x, name, dtype)
    x = layers.Activation("silu", dtype=dtype, name=f"{name}_2_swish")(x)
    x = convolution(x, filters, (1, 1, 1), (1, 1, 1), f"{name}_3", dtype)
    # As published, a block starts as its shortcut.
    x = batch_norm(x, f"{name}_3", dtype, gamma_initializer="zeros")
    return relu(layers.Add(dtype=dtype, name=f"{name}_add")([x, shortcut]), name, dtype)


def _squeeze_and_excitation(x: Tensor, name: str, dtype: Any) -> Tensor:
    channels = x.shape[-1]
    options = {"data_format": "channels_last", "dtype": dtype}
    weights = layers.GlobalAveragePooling3D(keepdims=True, name=f"{name}_squeeze", **options)(x)
    weights = layers.Dense(_squeezed(channels), "relu", dtype=dtype, name=f"{name}_excite_1")(weights)
    weights = layers.Dense(channels, "sigmoid", dtype=dtype, name=f"{name}_excite_2")(weights)
    return layers.Multiply(dtype=dtype, name=f"{name}_excite")([x, weights])


def _squeezed(channels: int) -> int:
    """A sixteenth of the channels, rounded to a multiple of 8, but at least 8 and not below nine tenths of it."""
    wanted = channels * _SQUEEZE
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def X3DS(name: str = "x3d_s", **kwargs: Any) -> X3D:
    """X3D-S of Feichtenhofer 2020 as published: 2.0 million weights without a classifier.

    X3D-M is the same network on larger clips: 16 x 224 x 224 pixels instead of 13 x 160 x 160.
    """
    return X3D(name=name, **kwargs)


def X3DTiny(name: str = "x3d_tiny", **kwargs: Any) -> X3D:
    """X3D with few blocks and channels, for small clips on a CPU. Not a published network."""
    return X3D((8, 16, 32, 64), (1, 2, 1, 1), name=name, **kwargs)
