"""What all backbones share."""

from typing import Any

import keras
from keras import layers

Tensor = Any

# Channel means and standard deviations of Kinetics-400 in [0, 1], as used by the torchvision video models.
PIXEL_MEAN = (0.43216, 0.394666, 0.37645)
PIXEL_STD = (0.22803, 0.22145, 0.216989)


class VideoBackbone(keras.Model):
    """A functional model from clips to the feature map of its last stage.

    Input: (batch, time, height, width, 3) float in [0, 1]; the channels are normalised inside. Time, height and width
    may be unknown (`None`).

    Attributes:
        pyramid_outputs: symbolic output of every stage by level, `{"P2": ..., "P5": ...}`, shallowest first.
    """

    pyramid_outputs: dict[str, Tensor]

    def __init__(self, inputs: Tensor, pyramid_outputs: dict[str, Tensor], **kwargs: Any):
        super().__init__(inputs=inputs, outputs=list(pyramid_outputs.values())[-1], **kwargs)
        self.pyramid_outputs = pyramid_outputs

    def level_model(self, levels: tuple[str, ...]) -> keras.Model:
        """The same layers, giving the feature maps of `levels` as a dict.

        Raises:
            ValueError: a level that this backbone does not have.
        """
        unknown = [level for level in levels if level not in self.pyramid_outputs]
        if unknown:
            raise ValueError(
                f"`levels` must be among {', '.join(self.pyramid_outputs)} for backbone `{self.name}`. "
                f"Received: {', '.join(unknown)}"
            )
        return keras.Model(self.input, {level: self.pyramid_outputs[level] for level in levels})


def normalise_pixels(clips: Tensor, dtype: Any = None) -> Tensor:
    """[0, 1] pixels to zero mean and unit variance per channel, by the statistics of Kinetics-400."""
    scale = [1 / std for std in PIXEL_STD]
    offset = [-mean / std for mean, std in zip(PIXEL_MEAN, PIXEL_STD, strict=True)]
    return layers.Rescaling(scale, offset, dtype=dtype, name="normalise_pixels")(clips)
