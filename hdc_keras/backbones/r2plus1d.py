"""R(2+1)D: residual networks of factorised convolutions (Tran et al., CVPR 2018, arXiv 1711.11248)."""

from typing import Any

import keras

from hdc_keras.backbones.blocks import batch_norm, convolution, relu
from hdc_keras.backbones.resnet3d import Strides, VideoResNet
from hdc_keras.backbones.video_backbone import Tensor


@keras.saving.register_keras_serializable(package="hdc_keras")
class R2Plus1D(VideoResNet):
    """A residual network that factorises each 3 x 3 x 3 convolution into a 1 x 3 x 3 and a 3 x 1 x 1 convolution.

    Batch norm and a ReLU lie between the two. The number of channels between them is chosen so that they have as many
    weights as the full convolution. The stem is a 1 x 7 x 7 convolution with stride (1, 2, 2), followed by a 3 x 1 x 1
    convolution; in the published network there are 45 channels between these two.

    Args:
        stackwise_num_filters: channels of each stage.
        stackwise_num_blocks: basic blocks of each stage.
        stem_stride: as in `VideoResNet`; 2 in the published network.
        sees_differences: as in `VideoResNet`; the published network sees frames only.
        input_shape: (time, height, width, 3); unknown lengths are `None`.
        dtype: dtype or policy of the layers.
        **kwargs: `name`, `trainable`.
    """

    @staticmethod
    def _stem(x: Tensor, filters: int, stride: int, dtype: Any) -> Tensor:
        middle = round(filters * 45 / 64)
        x = convolution(x, middle, (1, 7, 7), (1, stride, stride), "stem_spatial", dtype)
        x = relu(batch_norm(x, "stem_spatial", dtype), "stem_spatial", dtype)
        x = convolution(x, filters, (3, 1, 1), (1, 1, 1), "stem", dtype)
        return relu(batch_norm(x, "stem", dtype), "stem", dtype)

    @staticmethod
    def _cube(x: Tensor, filters: int, middle: int, strides: Strides, sees_time: bool, name: str, dtype: Any) -> Tensor:
        x = convolution(x, middle, (1, 3, 3), (1, *strides[1:]), f"{name}_spatial", dtype)
        x = relu(batch_norm(x, f"{name}_spatial", dtype), f"{name}_spatial", dtype)
        return convolution(x, filters, (3, 1, 1), (strides[0], 1, 1), name, dtype)


def R2Plus1D18(name: str = "r2plus1d18", **kwargs: Any) -> R2Plus1D:
    """R(2+1)D-18 of Tran et al. 2018 as published: 31.3 million weights without a classifier."""
    return R2Plus1D([64, 128, 256, 512], [2, 2, 2, 2], name=name, **kwargs)


def R2Plus1DTiny(name: str = "r2plus1d_tiny", **kwargs: Any) -> R2Plus1D:
    """R(2+1)D with one block per stage and few channels, for small clips on a CPU. Not a published network."""
    return R2Plus1D([12, 24, 48, 96], [1, 1, 1, 1], name=name, **kwargs)
