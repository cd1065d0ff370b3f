"""The network of a classifier as it is used: clips of any size in, a score for each class out."""

from typing import Any

import keras
from keras import ops

from hdc_keras.features.encoder import resize_frames
from hdc_keras.finetuning.classifier import VideoClassifier, pooled
from hdc_keras.views.transforms import even_crops

Tensor = Any

SCORES = "scores"


class ClassNetwork(keras.Model):
    """Gives the classes of clips their scores, without augmentation.

    Frames of any size are resized to `frame_size`, then cropped to the size that the classifier was trained with.

    Args:
        classifier: the trained classifier. Weights are shared with it.
        frame_size: (height, width) in pixels that frames are resized to; `data.decode_size` of the experiment.
        crops: number of crops of each clip, as in `ClipEncoder`. They are stacked along the batch axis.

    Attributes:
        classes: names of the classes, in the order of the scores.
    """

    def __init__(self, classifier: VideoClassifier, frame_size: tuple[int, int], crops: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.backbone = classifier.backbone
        self.pyramid = classifier.pyramid
        self.classifier = classifier.classifier
        self.classes = tuple(classifier.classes)
        self.levels = classifier.levels
        self.heads: dict[str, Any] = {}
        views = classifier.views_config
        self.view_size, self.focus, self.steady = views.size, views.focus, views.steady
        self.frame_size = (frame_size[0], frame_size[1])
        self.crops = crops
        self.built = True

    def call(self, video: Tensor) -> dict[str, Tensor]:
        """Score clips.

        Args:
            video: (batch, time, height, width, 3) uint8.

        Returns:
            `scores`: (crops * batch, classes) float32, which add up to 1.
        """
        frames = resize_frames(video, self.frame_size)
        return self.score(even_crops(frames, self.view_size, self.crops, self.focus, self.steady))

    def score(self, clips: Tensor) -> dict[str, Tensor]:
        """Score clips that are cropped already: (batch, time, size, size, 3) in [0, 1]."""
        maps = self.pyramid(clips, training=False)
        return {SCORES: ops.softmax(self.classifier(pooled(maps, self.levels)))}
