"""The frozen pretrained network: clips in, pooled features and embeddings out."""

from typing import Any

import keras
from keras import ops

from hdc_keras.model import HDC
from hdc_keras.objective.heads import unit_length
from hdc_keras.views.transforms import even_crops

Tensor = Any


class ClipEncoder(keras.Model):
    """The pretrained network as evaluation and exported models use it, without augmentation.

    Frames of any size are resized to `frame_size`, then cropped to the size of the pretraining views.

    Args:
        model: the pretrained model. The encoder shares its weights.
        frame_size: (height, width) in pixels that frames are resized to; `data.decode_size` of the experiment.
        crops: number of crops of each clip: 1 is the centre crop, more are evenly spaced along the frame's longer side.
            They are stacked along the batch axis (see `even_crops`).

    Attributes:
        backbone: the pretrained backbone.
    """

    def __init__(self, model: HDC, frame_size: tuple[int, int], crops: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.backbone = model.backbone
        self.pyramid = model.pyramid
        self.heads = model.objective.heads
        self.levels = model.contrast_config.used_levels
        self.tasks = model.objective.tasks
        self.pairs = model.objective.pairs
        self.view_size = model.views_config.size
        self.focus, self.steady = model.views_config.focus, model.views_config.steady
        self.frame_size = (frame_size[0], frame_size[1])
        self.crops = crops
        self.built = True

    def call(self, video: Tensor) -> dict[str, Tensor]:
        """Encode clips.

        Args:
            video: (batch, time, height, width, 3) uint8.

        Returns:
            float32 tensors by name, with crops * batch rows:

            - `P2` ...: (rows, channels) features of each level, averaged over time and space.
            - `P2_spatial` ...: (rows, embedding_dim) embeddings of unit length, for each level and task with a head.
            - `embedding`: (rows, tasks * embedding_dim), the embeddings of every task at its deepest level,
              concatenated and scaled to unit length.

        Raises:
            ValueError: the clips have no frames, or so few that a feature map is empty.
        """
        if video.shape[1] == 0:
            raise ValueError("expected (batch, time, height, width, 3) uint8 with one frame or more. Received: none")
        frames = resize_frames(video, self.frame_size)
        clips = even_crops(frames, self.view_size, self.crops, self.focus, self.steady)
        try:
            maps = self.pyramid(clips, training=False)
        except ValueError as error:
            if video.shape[1] != 1:
                raise
            raise ValueError(f"{self.backbone.name} needs clips of more than one frame. Received: one") from error
        outputs: dict[str, Tensor] = {}
        for level, feature_map in maps.items():
            if 0 in feature_map.shape[1:4]:
                raise ValueError(
                    f"{self.backbone.name} needs longer clips: {video.shape[1]} frames leave nothing of {level}. "
                    "Expected (batch, time, height, width, 3) uint8 with more frames."
                )
            outputs[level] = ops.mean(ops.cast(feature_map, "float32"), axis=(1, 2, 3))
        deepest = {}
        for level, task in self.pairs:
            deepest[task] = outputs[f"{level}_{task}"] = self.heads[f"{level}_{task}"](outputs[level], training=False)
        outputs["embedding"] = unit_length(ops.concatenate([deepest[task] for task in self.tasks], axis=-1))
        return outputs


def resize_frames(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize clips with antialiasing: (batch, time, height, width, 3) -> (batch, time, *size, 3) float32."""
    if tuple(video.shape[2:4]) == tuple(size):
        return ops.cast(video, "float32")
    batch, time, height, width = ops.shape(video)[:4]
    frames = ops.reshape(ops.cast(video, "float32"), (batch * time, height, width, 3))
    frames = ops.image.resize(frames, size, antialias=True, data_format="channels_last")
    return ops.reshape(frames, (batch, time, *size, 3))
