"""C3D: plain 3 x 3 x 3 convolutions and pooling (Tran et al., ICCV 2015, arXiv 1412.0767)."""

from collections.abc import Sequence
from typing import Any

import keras

from hdc_keras.backbones.blocks import batch_norm, convolution, max_pool, relu
from hdc_keras.backbones.video_backbone import VideoBackbone, clip_input

# Number of convolutions in each stage: conv1, conv2, conv3a and conv3b, ...
_CONVOLUTIONS = (1, 1, 2, 2, 2)


@keras.saving.register_keras_serializable(package="hdc_keras")
class C3D(VideoBackbone):
    """The eight convolutions of C3D, conv1 to conv5b, without its last pooling and classifier.

    The first pooling halves only height and width, the later ones also time. The levels P2 to P5 are the outputs of
    conv2, conv3b, conv4b and conv5b.

    Args:
        stackwise_num_filters: channels of conv1 to conv5, five numbers.
        use_batch_norm: batch norm after every convolution. The published network has none; VCOP and papers that build
            on its code use it.
        input_shape: (time, height, width, 3); unknown lengths are `None`.
        dtype: dtype or policy of the layers.
        **kwargs: `name`, `trainable`.

    Raises:
        ValueError: `stackwise_num_filters` does not have five entries.
    """

    def __init__(
        self,
        stackwise_num_filters: Sequence[int] = (64, 128, 256, 512, 512),
        use_batch_norm: bool = False,
        input_shape: Sequence[int | None] = (None, None, None, 3),
        dtype: Any = None,
        **kwargs: Any,
    ):
        if len(stackwise_num_filters) != len(_CONVOLUTIONS):
            raise ValueError(
                f"`stackwise_num_filters` must have {len(_CONVOLUTIONS)} entries. Received: {stackwise_num_filters}"
            )
        clips, x = clip_input(input_shape, dtype)
        pyramid_outputs, block_outputs = {}, []
        for stage, (filters, count) in enumerate(zip(stackwise_num_filters, _CONVOLUTIONS, strict=True), 1):
            if stage > 1:
                size = (1 if stage == 2 else 2, 2, 2)
                x = max_pool(x, size, size, f"stage{stage}", dtype)
            for number in range(1, count + 1):
                name = f"stage{stage}_{number}"
                x = convolution(x, filters, (3, 3, 3), (1, 1, 1), name, dtype, use_bias=not use_batch_norm)
                if use_batch_norm:
                    x = batch_norm(x, name, dtype)
                x = relu(x, name, dtype)
                block_outputs.append(x)
            if stage > 1:
                pyramid_outputs[f"P{stage}"] = x
        arguments = {
            "stackwise_num_filters": list(stackwise_num_filters),
            "use_batch_norm": use_batch_norm,
            "input_shape": list(input_shape),
            "dtype": dtype,
        }
        super().__init__(clips, pyramid_outputs, arguments, block_outputs, **kwargs)


def C3DTiny(name: str = "c3d_tiny", **kwargs: Any) -> C3D:
    """C3D with few channels and batch norm, for small clips on a CPU. Not a published network."""
    return C3D((8, 12, 24, 48, 96), use_batch_norm=True, name=name, **kwargs)
