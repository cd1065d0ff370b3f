"""The vision transformers of VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602)."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from hdc_keras.backbones.attention import QueryKeyValue, SelfAttention
from hdc_keras.backbones.video_backbone import Tensor, VideoBackbone, clip_input

_LAYER_NORM_EPSILON = 1e-6  # as published
_LEVELS = ("P2", "P3", "P4", "P5")


@keras.saving.register_keras_serializable(package="hdc_keras")
class VideoViT(VideoBackbone):
    """The encoder of VideoMAE: a plain vision transformer whose tokens are tubelets.

    Every token attends to all tokens of the clip. The blocks normalise their input ("pre-norm"). The position of a
    token is added as fixed sines and cosines, so a clip may have any number of tubelets.

    A transformer has no stages. The levels P2 to P5 are the tokens at a quarter, a half, three quarters and the end of
    the depth, all with one token for each tubelet. The mean over P5 is VideoMAE's feature for classification: the layer
    norm of the mean token.

    Args:
        channels: channels of each token.
        num_blocks: number of blocks, a multiple of 4.
        num_heads: attention heads of each block.
        tubelet: (time, height, width) of the pixels of a token. Clips must consist of whole tubelets.
        input_shape: (time, height, width, 3); unknown lengths are `None`.
        dtype: dtype or policy of the layers.
        **kwargs: `name`, `trainable`.

    Raises:
        ValueError: `num_blocks` is no multiple of 4, `channels` no multiple of 2 and `num_heads`, or `input_shape` does
            not consist of whole tubelets.

    Example:
        ```python
        backbone = hdc_keras.backbones.VideoMAEViTS()
        features = backbone(np.zeros((1, 16, 112, 112, 3), "float32"))  # (1, 8, 7, 7, 384)
        ```
    """

    def __init__(
        self,
        channels: int,
        num_blocks: int = 12,
        num_heads: int = 6,
        tubelet: Sequence[int] = (2, 16, 16),
        input_shape: Sequence[int | None] = (None, None, None, 3),
        dtype: Any = None,
        **kwargs: Any,
    ):
        if num_blocks % len(_LEVELS):
            raise ValueError(f"`num_blocks` must be a multiple of {len(_LEVELS)}. Received: {num_blocks}")
        if channels % num_heads or channels % 2:
            raise ValueError(
                f"`channels` must be a multiple of 2 and of `num_heads` ({num_heads}). Received: {channels}"
            )
        clips, x = clip_input(input_shape, dtype)
        x = WholeTubelets(tubelet, dtype=dtype, name="whole_tubelets")(x)
        pixels = math.prod(tubelet) * 3
        # PyTorch's initialisation of a convolution, which VideoMAE keeps here.
        uniform = keras.initializers.RandomUniform(-(pixels**-0.5), pixels**-0.5)
        x = layers.Conv3D(
            channels,
            tuple(tubelet),
            tuple(tubelet),
            data_format="channels_last",
            kernel_initializer=uniform,
            bias_initializer=uniform,
            dtype=dtype,
            name="tubelets",
        )(x)
        x = SinePositions(dtype=dtype, name="positions")(x)
        pyramid_outputs, block_outputs = {}, [x]
        blocks_of_level = num_blocks // len(_LEVELS)
        for number in range(1, num_blocks + 1):
            x = _block(x, num_heads, f"block{number}", dtype)
            if number == num_blocks:
                x = MeanTokenNormalization(_LAYER_NORM_EPSILON, dtype=dtype, name="norm")(x)
            block_outputs.append(x)
            if number % blocks_of_level == 0:
                pyramid_outputs[_LEVELS[number // blocks_of_level - 1]] = x
        arguments = {
            "channels": channels,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
            "tubelet": list(tubelet),
            "input_shape": list(input_shape),
            "dtype": dtype,
        }
        super().__init__(clips, pyramid_outputs, arguments, block_outputs, **kwargs)
        self.clip_multiples = (tubelet[0], tubelet[1], tubelet[2])


def _block(x: Tensor, num_heads: int, name: str, dtype: Any) -> Tensor:
    channels = x.shape[-1]
    attended = _layer_norm(x, f"{name}_attention", dtype)
    attended = QueryKeyValue(channels, dtype=dtype, name=f"{name}_attention_qkv")(attended)
    attended = SelfAttention(num_heads, dtype=dtype, name=f"{name}_attention")(attended)
    attended = _dense(attended, channels, f"{name}_attention_projection", dtype)
    x = layers.Add(dtype=dtype, name=f"{name}_attention_add")([x, attended])
    hidden = _layer_norm(x, f"{name}_mlp", dtype)
    hidden = _dense(hidden, 4 * channels, f"{name}_mlp_1", dtype)
    hidden = layers.Activation("gelu", dtype=dtype, name=f"{name}_mlp_gelu")(hidden)
    hidden = _dense(hidden, channels, f"{name}_mlp_2", dtype)
    return layers.Add(dtype=dtype, name=name)([x, hidden])


def _layer_norm(x: Tensor, name: str, dtype: Any) -> Tensor:
    return layers.LayerNormalization(epsilon=_LAYER_NORM_EPSILON, dtype=dtype, name=f"{name}_norm")(x)


def _dense(x: Tensor, channels: int, name: str, dtype: Any) -> Tensor:
    initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return layers.Dense(channels, kernel_initializer=initializer, dtype=dtype, name=name)(x)


@keras.saving.register_keras_serializable(package="hdc_keras")
class WholeTubelets(layers.Layer):
    """Passes clips on, and refuses those that do not consist of whole tubelets, whose last pixels would be left out.

    Args:
        tubelet: (time, height, width).
        **kwargs: `name`, `dtype`.

    Raises:
        ValueError: in a call; the lengths are no multiples of the tubelet's.
    """

    def __init__(self, tubelet: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.tubelet = list(tubelet)

    def call(self, clips: Tensor) -> Tensor:
        """Check (batch, time, height, width, channels)."""
        _require_whole(clips.shape[1:4], self.tubelet)
        if None not in clips.shape[1:4]:
            return clips
        # In a graph of unknown lengths, the runtime refuses to reshape a clip that is not whole.
        batch, *lengths, channels = ops.shape(clips)
        whole = [length // size * size for length, size in zip(lengths, self.tubelet, strict=True)]
        return ops.reshape(clips, (batch, *whole, channels))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        _require_whole(input_shape[1:4], self.tubelet)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {**super().get_config(), "tubelet": self.tubelet}


def _require_whole(lengths: Sequence[int | None], tubelet: Sequence[int]) -> None:
    if any(
        length is not None and (length == 0 or length % size) for length, size in zip(lengths, tubelet, strict=True)
    ):
        time, height, width = tubelet
        raise ValueError(
            f"clips must consist of whole tubelets of {time} frames and {height} x {width} pixels. Received clips of "
            f"{lengths[0]} frames and {lengths[1]} x {lengths[2]} pixels. Choose other `data.frames` and `views.size`."
        )


@keras.saving.register_keras_serializable(package="hdc_keras")
class SinePositions(layers.Layer):
    """Adds fixed sines and cosines of each token's place, counted through all rows of all frames.

    As in the first transformer (Vaswani et al. 2017): channels 2 i and 2 i + 1 of the token at place p are the sine and
    cosine of p / 10000^(2 i / channels).
    """

    def call(self, maps: Tensor) -> Tensor:
        """Add positions to (batch, time, height, width, channels)."""
        _, time, height, width = ops.shape(maps)[:4]
        channels = maps.shape[-1]
        places = ops.reshape(ops.arange(time * height * width, dtype="float32"), (-1, 1))
        frequencies = [10000.0 ** (-2 * number / channels) for number in range(channels // 2)]
        angles = places * ops.convert_to_tensor(frequencies, dtype="float32")
        positions = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)
        positions = ops.reshape(positions, (1, time, height, width, channels))
        return maps + ops.cast(positions, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape


@keras.saving.register_keras_serializable(package="hdc_keras")
class MeanTokenNormalization(layers.Layer):
    """Normalises all tokens of a clip by mean and variance over the channels of their mean.

    The mean of the result is the layer norm of the mean token, which VideoMAE's classifier sees. Any reader of the map
    that averages it over time and space therefore sees what VideoMAE's classifier does.

    Args:
        epsilon: added to the variance.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, epsilon: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create scale and offset of each channel."""
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta", autocast=False)

    def call(self, maps: Tensor) -> Tensor:
        """Normalise (batch, time, height, width, channels)."""
        maps = ops.cast(maps, keras.backend.result_type(self.compute_dtype, "float32"))
        token = ops.mean(maps, axis=(1, 2, 3), keepdims=True)
        mean, variance = ops.mean(token, axis=-1, keepdims=True), ops.var(token, axis=-1, keepdims=True)
        scale = self.gamma / ops.sqrt(variance + self.epsilon)
        return ops.cast(maps * scale + (self.beta - mean * scale), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {**super().get_config(), "epsilon": self.epsilon}


def VideoMAEViTS(name: str = "videomae_vit_s", **kwargs: Any) -> VideoViT:
    """ViT-S of VideoMAE as published: 12 blocks, 6 heads, 21.9 million weights without a classifier."""
    return VideoViT(384, 12, 6, name=name, **kwargs)


def VideoMAEViTB(name: str = "videomae_vit_b", **kwargs: Any) -> VideoViT:
    """ViT-B of VideoMAE as published: 12 blocks, 12 heads, 86.2 million weights without a classifier."""
    return VideoViT(768, 12, 12, name=name, **kwargs)


def VideoMAEViTTiny(name: str = "videomae_vit_tiny", **kwargs: Any) -> VideoViT:
    """VideoMAE's network with 4 narrow blocks and smaller tubelets, for small clips on a CPU. Not published."""
    return VideoViT(96, 4, 3, tubelet=(2, 8, 8), name=name, **kwargs)
