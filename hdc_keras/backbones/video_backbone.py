"""The base class of all backbones, and their input."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

Tensor = Any

# Channel means and standard deviations of Kinetics-400 pixels in [0, 1], as torchvision's video models use them.
PIXEL_MEAN = (0.43216, 0.394666, 0.37645)
PIXEL_STD = (0.22803, 0.22145, 0.216989)


class VideoBackbone(keras.Model):
    """A functional model from clips to the feature map of its last stage.

    Input: (batch, time, height, width, 3) float in [0, 1]; channels are normalised inside the model. Time, height and
    width may be unknown (`None`).

    A subclass builds its stages from symbolic clips in its constructor, and passes them and all its arguments to this
    constructor.

    Args:
        inputs: the symbolic clips.
        pyramid_outputs: symbolic output of every stage by level, `{"P2": ..., "P5": ...}`, shallowest first.
        arguments: constructor arguments of the subclass, including `dtype`, for `get_config`.
        block_outputs: symbolic output of every block, in order, including the outputs of the stages. Each is
            the only connection from earlier to later layers, so rematerialisation can cut the network there. Defaults
            to the outputs of the stages.
        **kwargs: `name`, `trainable`.

    Attributes:
        pyramid_outputs: see above.
        block_outputs: see above.
        clip_multiples: (time, height, width) of which a clip's lengths must be multiples; 1 for any length.
    """

    pyramid_outputs: dict[str, Tensor]
    block_outputs: list[Tensor]
    clip_multiples: tuple[int, int, int] = (1, 1, 1)

    def __init__(
        self,
        inputs: Tensor,
        pyramid_outputs: dict[str, Tensor],
        arguments: dict[str, Any],
        block_outputs: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ):
        super().__init__(inputs=inputs, outputs=list(pyramid_outputs.values())[-1], **kwargs)
        self.pyramid_outputs = pyramid_outputs
        self.block_outputs = list(block_outputs or pyramid_outputs.values())
        # `dtype=None` is resolved here: the global policy may have changed by the time the network is saved.
        self._arguments = {**arguments, "dtype": keras.dtype_policies.get(arguments["dtype"])}

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument."""
        arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in self._arguments.items()}
        return {
            **arguments,
            "dtype": keras.dtype_policies.serialize(self._arguments["dtype"]),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "VideoBackbone":
        """Create a backbone from the result of `get_config`."""
        config = dict(config)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        return cls(**config)

    def level_model(self, levels: tuple[str, ...]) -> keras.Model:
        """A model on the same layers that returns the feature maps of `levels` as a dict.

        Raises:
            ValueError: the backbone lacks one of the levels.
        """
        unknown = [level for level in levels if level not in self.pyramid_outputs]
        if unknown:
            raise ValueError(
                f"`levels` must be among {', '.join(self.pyramid_outputs)} for backbone `{self.name}`. "
                f"Received: {', '.join(unknown)}"
            )
        return keras.Model(self.input, {level: self.pyramid_outputs[level] for level in levels})

    def block_models(self, last: str) -> list[keras.Model]:
        """A chain of models on the same layers, one per block, up to level `last`.

        The first model takes clips; each later one takes the output of its predecessor.
        """
        blocks, start = [], self.input
        for output in self.block_outputs:
            blocks.append(keras.Model(start, output))
            start = output
            if output is self.pyramid_outputs[last]:
                break
        return blocks


def clip_input(input_shape: Sequence[int | None], dtype: Any) -> tuple[Tensor, Tensor]:
    """Symbolic clips of `input_shape`, (time, height, width, 3), and the same clips with normalised channels."""
    clips = layers.Input(tuple(input_shape), name="clips")
    return clips, normalise_pixels(clips, dtype)


def normalise_pixels(clips: Tensor, dtype: Any = None) -> Tensor:
    """Normalise pixels in [0, 1] with the channel means and variances of Kinetics-400."""
    variance = [std**2 for std in PIXEL_STD]
    return layers.Normalization(-1, PIXEL_MEAN, variance, dtype=dtype, name="normalise_pixels")(clips)
