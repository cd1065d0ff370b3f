"""S3D: Inception with separable 3D convolutions (Xie et al., ECCV 2018, arXiv 1712.04851)."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from hdc_keras.backbones.blocks import batch_norm, convolution, max_pool, relu
from hdc_keras.backbones.video_backbone import Tensor, VideoBackbone, clip_input

# Channels of the four branches of each Inception block: 1x1x1; 1x1x1 and 3x3x3; 1x1x1 and 3x3x3; pooling and 1x1x1.
_INCEPTION: dict[str, tuple[tuple[int, ...], ...]] = {
    "P3": ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    "P4": (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    "P5": ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
}
_BATCH_NORM = {"momentum": 0.999, "epsilon": 1e-3}  # as published


@keras.saving.register_keras_serializable(package="hdc_keras")
class S3D(VideoBackbone):
    """I3D with each k x k x k convolution factorised into 1 x k x k and k x 1 x 1. Without feature gating.

    P2 is the last convolution before the first Inception block; P3 to P5 are the three groups of Inception blocks. The
    stem and the poolings before P4 and P5 halve time. The stem and the poolings before all four levels halve height and
    width.

    Args:
        width: factor by which every number of channels is multiplied; 1 is the published network.
        input_shape: (time, height, width, 3); unknown lengths are `None`.
        dtype: dtype or policy of the layers.
        **kwargs: `name`, `trainable`.
    """

    def __init__(
        self,
        width: float = 1.0,
        input_shape: Sequence[int | None] = (None, None, None, 3),
        dtype: Any = None,
        **kwargs: Any,
    ):
        def channels(published: int) -> int:
            return max(1, round(width * published))

        clips, x = clip_input(input_shape, dtype)
        x = _separable(x, channels(64), 7, 2, "stem", dtype)
        block_outputs = [x]
        x = max_pool(x, (1, 3, 3), (1, 2, 2), "stem", dtype, padded=True)
        x = _point(x, channels(64), "stage2_1", dtype)
        x = _separable(x, channels(192), 3, 1, "stage2_2", dtype)
        pyramid_outputs = {"P2": x}
        block_outputs.append(x)
        pools = {"P3": ((1, 3, 3), (1, 2, 2)), "P4": ((3, 3, 3), (2, 2, 2)), "P5": ((2, 2, 2), (2, 2, 2))}
        for level, blocks in _INCEPTION.items():
            size, strides = pools[level]
            x = max_pool(x, size, strides, f"stage{level[1]}", dtype, padded=size[1] == 3)
            for number, published in enumerate(blocks, 1):
                x = _inception(x, [channels(count) for count in published], f"stage{level[1]}_block{number}", dtype)
                block_outputs.append(x)
            pyramid_outputs[level] = x
        arguments = {"width": width, "input_shape": list(input_shape), "dtype": dtype}
        super().__init__(clips, pyramid_outputs, arguments, block_outputs, **kwargs)


def S3DTiny(name: str = "s3d_tiny", **kwargs: Any) -> S3D:
    """S3D with an eighth of the channels, for small clips on a CPU. Not a published network."""
    return S3D(0.125, name=name, **kwargs)


def _norm_relu(x: Tensor, name: str, dtype: Any) -> Tensor:
    return relu(batch_norm(x, name, dtype, **_BATCH_NORM), name, dtype)


def _point(x: Tensor, filters: int, name: str, dtype: Any) -> Tensor:
    return _norm_relu(convolution(x, filters, (1, 1, 1), (1, 1, 1), name, dtype), name, dtype)


def _separable(x: Tensor, filters: int, kernel: int, stride: int, name: str, dtype: Any) -> Tensor:
    x = convolution(x, filters, (1, kernel, kernel), (1, stride, stride), f"{name}_spatial", dtype)
    x = _norm_relu(x, f"{name}_spatial", dtype)
    return _norm_relu(convolution(x, filters, (kernel, 1, 1), (stride, 1, 1), name, dtype), name, dtype)


def _inception(x: Tensor, channels: Sequence[int], name: str, dtype: Any) -> Tensor:
    first = _point(x, channels[0], f"{name}_a", dtype)
    second = _separable(_point(x, channels[1], f"{name}_b1", dtype), channels[2], 3, 1, f"{name}_b2", dtype)
    third = _separable(_point(x, channels[3], f"{name}_c1", dtype), channels[4], 3, 1, f"{name}_c2", dtype)
    pooled = max_pool(x, (3, 3, 3), (1, 1, 1), name, dtype, padded=True)
    fourth = _point(pooled, channels[5], f"{name}_d", dtype)
    return layers.Concatenate(dtype=dtype, name=f"{name}_join")([first, second, third, fourth])
