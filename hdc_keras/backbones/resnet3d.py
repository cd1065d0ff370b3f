"""R3D and MC3: residual networks with 3 x 3 x 3 convolutions in all stages or in the first (Tran et al., CVPR 2018,
arXiv 1711.11248).
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from hdc_keras.backbones.blocks import batch_norm, convolution, frame_differences, relu
from hdc_keras.backbones.video_backbone import Tensor, VideoBackbone, clip_input

Strides = tuple[int, int, int]


class VideoResNet(VideoBackbone):
    """Base class of R3D, MC3 and R(2+1)D: a stem without pooling, then stages of basic blocks.

    Each stage after the first halves time, height and width; a stage that does not see time leaves it as it is.
    Subclasses implement the stem and the 3 x 3 x 3 convolutions.

    Args:
        stackwise_num_filters: channels of each stage.
        stackwise_num_blocks: basic blocks of each stage.
        stem_stride: stride of the stem along height and width.
        sees_differences: whether the stem sees each frame's difference from the one before it, instead of the frame.
            What moves is then plain to a network that is too small, or trained for too short a time, to learn it, and
            a still background cannot tell it which video it sees.
        input_shape: (time, height, width, 3); unknown lengths are `None`.
        dtype: dtype or policy of the layers.
        **kwargs: `name`, `trainable`.

    Raises:
        ValueError: the two lists differ in length.
    """

    def __init__(
        self,
        stackwise_num_filters: Sequence[int],
        stackwise_num_blocks: Sequence[int],
        stem_stride: int = 2,
        sees_differences: bool = False,
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
        if sees_differences:
            x = frame_differences(x, dtype)
        x = self._stem(x, stackwise_num_filters[0], stem_stride, dtype)
        pyramid_outputs, block_outputs = {}, [x]
        for stage, (filters, blocks) in enumerate(zip(stackwise_num_filters, stackwise_num_blocks, strict=True)):
            for block in range(blocks):
                stride, sees_time = 2 if stage > 0 and block == 0 else 1, self._sees_time(stage)
                name = f"stage{stage + 2}_block{block + 1}"
                x = self._basic_block(x, filters, (stride if sees_time else 1, stride, stride), sees_time, name, dtype)
                block_outputs.append(x)
            pyramid_outputs[f"P{stage + 2}"] = x
        arguments = {
            "stackwise_num_filters": list(stackwise_num_filters),
            "stackwise_num_blocks": list(stackwise_num_blocks),
            "stem_stride": stem_stride,
            "sees_differences": sees_differences,
            "input_shape": list(input_shape),
            "dtype": dtype,
        }
        super().__init__(clips, pyramid_outputs, arguments, block_outputs, **kwargs)

    @staticmethod
    def _stem(x: Tensor, filters: int, stride: int, dtype: Any) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def _sees_time(stage: int) -> bool:
        """Whether the convolutions of a stage, counted from 0, extend over time."""
        return True

    @staticmethod
    def _cube(x: Tensor, filters: int, middle: int, strides: Strides, sees_time: bool, name: str, dtype: Any) -> Tensor:
        """A 3 x 3 x 3 convolution or its factorisation, without the batch norm that follows.

        Args:
            x: its input.
            filters: output channels.
            middle: channels between the two parts of a factorised convolution.
            strides: strides along time, height and width.
            sees_time: whether it extends over time; if not, it is a 1 x 3 x 3 convolution.
            name: prefix of the layers' names.
            dtype: dtype or policy of the layers.
        """
        raise NotImplementedError

    def _basic_block(self, x: Tensor, filters: int, strides: Strides, sees_time: bool, name: str, dtype: Any) -> Tensor:
        shortcut, width = x, x.shape[-1]
        # With this many channels between its parts, a factorised convolution has as many weights as a full one.
        middle = (width * filters * 27) // (width * 9 + 3 * filters)
        if max(strides) > 1 or width != filters:
            shortcut = convolution(x, filters, (1, 1, 1), strides, f"{name}_shortcut", dtype)
            shortcut = batch_norm(shortcut, f"{name}_shortcut", dtype)
        x = self._cube(x, filters, middle, strides, sees_time, f"{name}_1", dtype)
        x = relu(batch_norm(x, f"{name}_1", dtype), f"{name}_1", dtype)
        x = self._cube(x, filters, middle, (1, 1, 1), sees_time, f"{name}_2", dtype)
        x = batch_norm(x, f"{name}_2", dtype)
        return relu(layers.Add(dtype=dtype, name=f"{name}_add")([x, shortcut]), name, dtype)


@keras.saving.register_keras_serializable(package="hdc_keras")
class R3D(VideoResNet):
    """A 3D residual network of basic blocks. The stem is a 3 x 7 x 7 convolution with stride (1, 2, 2).

    Args:
        stackwise_num_filters: channels of each stage.
        stackwise_num_blocks: basic blocks of each stage.
        stem_stride: as in `VideoResNet`; 2 in the published networks.
        sees_differences: as in `VideoResNet`; the published networks see frames only.
        input_shape: (time, height, width, 3); unknown lengths are `None`.
        dtype: dtype or policy of the layers.
        **kwargs: `name`, `trainable`.

    Example:
        ```python
        backbone = hdc_keras.backbones.R3D([64, 128, 256, 512], [2, 2, 2, 2])
        features = backbone(np.zeros((1, 16, 112, 112, 3), "float32"))  # (1, 2, 7, 7, 512)
        ```
    """

    @staticmethod
    def _stem(x: Tensor, filters: int, stride: int, dtype: Any) -> Tensor:
        x = convolution(x, filters, (3, 7, 7), (1, stride, stride), "stem", dtype)
        return relu(batch_norm(x, "stem", dtype), "stem", dtype)

    @staticmethod
    def _cube(x: Tensor, filters: int, middle: int, strides: Strides, sees_time: bool, name: str, dtype: Any) -> Tensor:
        return convolution(x, filters, (3 if sees_time else 1, 3, 3), strides, name, dtype)


@keras.saving.register_keras_serializable(package="hdc_keras")
class MC3(R3D):
    """R3D whose stages after the first see single frames ("mixed convolutions"), so that they keep every frame.

    The arguments are those of `R3D`.
    """

    @staticmethod
    def _sees_time(stage: int) -> bool:
        return stage == 0


def MC318(name: str = "mc3_18", **kwargs: Any) -> MC3:
    """MC3-18 of Tran et al. 2018 as published: 2, 2, 2, 2 basic blocks, 11.5 million weights without a classifier."""
    return MC3([64, 128, 256, 512], [2, 2, 2, 2], name=name, **kwargs)


def MC3Tiny(name: str = "mc3_tiny", **kwargs: Any) -> MC3:
    """MC3 with one block per stage and few channels, for small clips on a CPU. Not a published network."""
    return MC3([12, 24, 48, 96], [1, 1, 1, 1], name=name, **kwargs)


def R3D18(name: str = "r3d18", **kwargs: Any) -> R3D:
    """R3D-18 of Tran et al. 2018 as published: 2, 2, 2, 2 basic blocks, 33.2 million weights without a classifier."""
    return R3D([64, 128, 256, 512], [2, 2, 2, 2], name=name, **kwargs)


def R3D34(name: str = "r3d34", **kwargs: Any) -> R3D:
    """R3D-34 of Tran et al. 2018 as published: 3, 4, 6, 3 basic blocks, 63.5 million weights without a classifier."""
    return R3D([64, 128, 256, 512], [3, 4, 6, 3], name=name, **kwargs)


def R3D10(name: str = "r3d10", **kwargs: Any) -> R3D:
    """R3D with one basic block per stage, 14.4 million weights.

    VCOP (Xu et al., CVPR 2019) and papers that build on its code call this network "R3D" or even "R3D-18". Its
    results are not comparable with those of `R3D18`.
    """
    return R3D([64, 128, 256, 512], [1, 1, 1, 1], name=name, **kwargs)


def R3DTiny(name: str = "r3d_tiny", **kwargs: Any) -> R3D:
    """R3D with one block per stage and few channels, for small clips on a CPU. Not a published network."""
    return R3D([12, 24, 48, 96], [1, 1, 1, 1], name=name, **kwargs)


def R3DSmall(name: str = "r3d_small", **kwargs: Any) -> R3D:
    """R3D with one block per stage and a coarse stem, for real video on a CPU. Not a published network.

    On clips of the same size it takes half the time of `R3DTiny`: its early stages, which take most of the time, work
    on a quarter of the pixels.
    """
    return R3D([16, 32, 64, 128], [1, 1, 1, 1], stem_stride=4, name=name, **kwargs)


def R3DSmallMotion(name: str = "r3d_small_motion", **kwargs: Any) -> R3D:
    """`R3DSmall` that sees the differences between frames instead of frames: it knows what moves and nothing else."""
    return R3DSmall(sees_differences=True, name=name, **kwargs)
