"""R3D: residual networks with 3 x 3 x 3 convolutions throughout (Tran et al., CVPR 2018, arXiv 1711.11248)."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from hdc_keras.backbones.video_backbone import Tensor, VideoBackbone, normalise_pixels

# As in torchvision, whose weights this layout can take; Keras' own default epsilon is 1e-3.
_BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}


@keras.saving.register_keras_serializable(package="hdc_keras")
class R3D(VideoBackbone):
    """A 3D residual network of basic blocks.

    The stem is a 3 x 7 x 7 convolution with stride (1, 2, 2) and no pooling. Each stage after the first halves time,
    height and width. Convolutions pad as PyTorch does, on both sides alike.

    Args:
        stackwise_num_filters: channels of each stage.
        stackwise_num_blocks: basic blocks of each stage.
        input_shape: (time, height, width, 3); unknown lengths are `None`.
        dtype: dtype or policy of the layers.
        **kwargs: `name`, `trainable`.

    Example:
        ```python
        backbone = hdc_keras.backbones.R3D([64, 128, 256, 512], [2, 2, 2, 2])
        features = backbone(np.zeros((1, 16, 112, 112, 3), "float32"))  # (1, 2, 7, 7, 512)
        ```
    """

    def __init__(
        self,
        stackwise_num_filters: Sequence[int],
        stackwise_num_blocks: Sequence[int],
        input_shape: Sequence[int | None] = (None, None, None, 3),
        dtype: Any = None,
        **kwargs: Any,
    ):
        if len(stackwise_num_filters) != len(stackwise_num_blocks):
            raise ValueError(
                "`stackwise_num_filters` must have as many entries as `stackwise_num_blocks`. Received: "
                f"{stackwise_num_filters} and {stackwise_num_blocks}"
            )
        inputs = layers.Input(tuple(input_shape), name="clips")
        x = normalise_pixels(inputs, dtype)
        x = _convolution(x, stackwise_num_filters[0], (3, 7, 7), (1, 2, 2), "stem", dtype)
        x = layers.ReLU(dtype=dtype, name="stem_relu")(x)
        pyramid_outputs = {}
        for stage, (filters, blocks) in enumerate(zip(stackwise_num_filters, stackwise_num_blocks, strict=True)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _basic_block(x, filters, stride, f"stage{stage + 2}_block{block + 1}", dtype)
            pyramid_outputs[f"P{stage + 2}"] = x
        super().__init__(inputs, pyramid_outputs, **kwargs)
        self.stackwise_num_filters = list(stackwise_num_filters)
        self.stackwise_num_blocks = list(stackwise_num_blocks)
        self.clip_shape = tuple(input_shape)
        self._layers_dtype = dtype

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {
            "stackwise_num_filters": self.stackwise_num_filters,
            "stackwise_num_blocks": self.stackwise_num_blocks,
            "input_shape": list(self.clip_shape),
            "dtype": keras.dtype_policies.serialize(keras.dtype_policies.get(self._layers_dtype)),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "R3D":
        """A new backbone from what `get_config` gave."""
        config = dict(config)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        return cls(**config)


def R3D18(name: str = "r3d18", **kwargs: Any) -> R3D:
    """R3D-18 of Tran et al. 2018 as published: two basic blocks a stage, 33.2 million weights without a classifier."""
    return R3D([64, 128, 256, 512], [2, 2, 2, 2], name=name, **kwargs)


def R3DTiny(name: str = "r3d_tiny", **kwargs: Any) -> R3D:
    """R3D with one block a stage and few channels, for small clips on a CPU. Ours; no published network."""
    return R3D([12, 24, 48, 96], [1, 1, 1, 1], name=name, **kwargs)


def _basic_block(x: Tensor, filters: int, stride: int, name: str, dtype: Any) -> Tensor:
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = _convolution(x, filters, (1, 1, 1), (stride,) * 3, f"{name}_shortcut", dtype)
    x = _convolution(x, filters, (3, 3, 3), (stride,) * 3, f"{name}_1", dtype)
    x = layers.ReLU(dtype=dtype, name=f"{name}_relu1")(x)
    x = _convolution(x, filters, (3, 3, 3), (1, 1, 1), f"{name}_2", dtype)
    x = layers.Add(dtype=dtype, name=f"{name}_add")([x, shortcut])
    return layers.ReLU(dtype=dtype, name=f"{name}_relu2")(x)


def _convolution(
    x: Tensor, filters: int, kernel: tuple[int, ...], strides: tuple[int, ...], name: str, dtype: Any
) -> Tensor:
    """Convolution and batch norm. Keras' "same" padding is uneven under a stride, so there it is given explicitly."""
    padding = "same"
    if max(strides) > 1 and max(kernel) > 1:
        x = layers.ZeroPadding3D(tuple(k // 2 for k in kernel), dtype=dtype, name=f"{name}_pad")(x)
        padding = "valid"
    # He initialisation over the fan-out, as in torchvision's video models.
    x = layers.Conv3D(
        filters,
        kernel,
        strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        dtype=dtype,
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(**_BATCH_NORM, dtype=dtype, name=f"{name}_norm")(x)
