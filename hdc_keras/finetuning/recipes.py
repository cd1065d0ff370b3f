"""Published recipes to fine-tune the whole network with labels, starting from the pretrained weights."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from hdc_keras.config import Experiment
from hdc_keras.probes.publication import BEST_ON_TEST, PIXELS_OF_IMAGENET, Publication

_NO_JITTER = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "fade_static": 0.0}


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning recipe: clips, optimizer, augmentation, choice of the epoch, and scoring of test videos.

    Attributes:
        version: increased whenever the same weights would get different metrics.
        source: the publication that the numbers come from.
        frames: frames per clip.
        stride: distance between the frames of a clip, in source frames.
        size: height and width of a clip in pixels.
        epochs: passes over the training videos.
        batch_size: videos per step.
        clips_per_video: clips drawn from each video per epoch.
        optimizer: "sgd" or "adam".
        learning_rate: initial learning rate.
        schedule: "constant", "cosine" (down to a thousandth; it moves once per epoch), or "steps".
        drops: for "steps": the epochs after which the learning rate is multiplied by `drop_factor`.
        drop_factor: see `drops`.
        momentum: momentum of SGD.
        weight_decay: L2 penalty on every weight, added to the gradient as in PyTorch's optimizers.
        crop: "fixed" for a square of `size` pixels at a random position; or the smallest and largest share of the
            frame's area that a crop covers.
        views: further keys of `ViewsConfig`: flips and colours.
        validation: share of the training videos held out to find the epoch with the lowest loss; 0: use the last epoch.
        averaged: what to average over the views of a test video: "logits" or "softmax".
    """

    version: int
    source: str
    frames: int
    stride: int
    size: int
    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    schedule: Literal["constant", "cosine", "steps"]
    averaged: Literal["logits", "softmax"]
    crop: Literal["fixed"] | tuple[float, float]
    clips_per_video: int = 1
    drops: tuple[int, ...] = ()
    drop_factor: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    views: dict[str, Any] = field(default_factory=dict)
    validation: float = 0.0

    def applied(self, experiment: Experiment) -> "FineTuning":
        """Adapt the recipe to an experiment: the clips of pretraining, and the overrides in `evaluate`.

        If pretraining never flips clips, neither does fine-tuning, whatever the recipe says. If pretraining crops from
        a square round what moves, or takes the camera's motion out, so does fine-tuning.
        """
        data, settings = experiment.data, experiment.evaluate
        epochs = settings.finetune_epochs or self.epochs
        # If pretraining does not flip, classes may differ only in left and right.
        views = self.views if experiment.views.flip else {**self.views, "flip": 0.0}
        if experiment.views.focus:
            views = {**views, "focus": experiment.views.focus}
        if experiment.views.steady:
            views = {**views, "steady": True}
        return replace(
            self,
            frames=data.frames,
            stride=data.stride,
            size=experiment.views.size,
            epochs=epochs,
            batch_size=settings.finetune_batch_size or self.batch_size,
            learning_rate=settings.finetune_learning_rate or self.learning_rate,
            views=views,
            # Scaled with the number of epochs.
            drops=tuple(round(drop * epochs / self.epochs) for drop in self.drops),
        )

    def fitted(self, videos: int, has_validation: bool) -> "FineTuning":
        """Adapt the recipe to a set of videos.

        Args:
            videos: number of training videos; the batch size is at most this.
            has_validation: whether videos are held out for validation; if not, the last epoch is used.
        """
        share = self.validation if has_validation else 0.0
        return replace(self, batch_size=min(self.batch_size, videos), validation=share)

    def view_settings(self, frame_size: tuple[int, int]) -> dict[str, Any]:
        """The augmentation as keys of `ViewsConfig`, for frames of (height, width) pixels."""
        if self.crop != "fixed":
            return {**self.views, "size": self.size, "crop_area": self.crop}
        height, width = frame_size
        if focus := self.views.get("focus"):
            height = width = round(focus * min(frame_size))
        rows, columns = min(self.size, height), min(self.size, width)
        share, aspect = rows * columns / (height * width), columns / rows
        return {**self.views, "size": self.size, "crop_area": (share, share), "crop_aspect": (aspect, aspect)}


def changed(published: FineTuning, used: FineTuning) -> dict[str, list[Any]]:
    """List the settings that differ from the published recipe: [published value, used value] by name."""
    before, after = ({**asdict(recipe), **recipe.views} for recipe in (published, used))
    names = [name for name in [*before, *after.keys() - before] if name != "views"]
    return {name: [before.get(name), after[name]] for name in names if before.get(name) != after[name]}


FINE_TUNING: dict[str, FineTuning] = {
    "finetune-vcop": FineTuning(
        # 1 validated on the first clip, not the middle one; 1 and 2 drew Glorot's initial weights for the classifier
        version=3,
        source="VCOP (Xu et al., CVPR 2019), as in its code, ft_classify.py",
        frames=16,
        stride=1,
        size=112,
        epochs=150,
        batch_size=8,
        optimizer="sgd",
        learning_rate=1e-3,
        schedule="constant",
        averaged="logits",
        crop="fixed",
        momentum=0.9,
        weight_decay=5e-4,
        views=_NO_JITTER,
        validation=800 / 9537,  # 800 videos of the first training split of UCF101
    ),
    "finetune-rspnet": FineTuning(
        version=2,  # 1 had a cosine that moved in every step, down to 0, Keras' SGD, and Glorot's weights
        source="RSPNet (Chen et al., AAAI 2021, arXiv 2011.07949), as in its code's configuration for UCF101 "
        "(config/finetune/ucf101_resnet18.jsonnet)",
        frames=16,
        stride=1,
        size=112,
        epochs=30,
        batch_size=32,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="cosine",
        averaged="logits",
        crop=(0.25, 1.0),
        momentum=0.9,
        weight_decay=1e-4,
        views={**_NO_JITTER, "flip": 0.5},
    ),
    "finetune-severe": FineTuning(
        version=2,  # 1 had Adam with an epsilon of 1e-7, and Glorot's initial weights
        source="SEVERE (Thoker et al., ECCV 2022, arXiv 2203.14221), as its code's configuration for HMDB51 "
        "(112x112x32-fold1)",
        frames=32,
        stride=2,  # about 16 frames per second from videos with 30
        size=112,
        epochs=16,
        batch_size=32,
        optimizer="adam",
        learning_rate=1e-4,
        schedule="steps",
        averaged="softmax",
        crop=(0.08, 1.0),
        clips_per_video=10,
        drops=(6, 10, 14),
        drop_factor=0.3,
        views={
            **_NO_JITTER,
            "flip": 0.5,
            "jitter": 1.0,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.4,
            "hue": 0.2,
        },
    ),
}

_VIEWS = {"views": "10x1"}
_CROP = ("drawn again if it does not fit, and at most ten times", "cut to the frame if it does not fit")
_FRAME_RATE = "that of the video, or `data.fps`, divided by the stride"
_CENTRAL_CROP = "central crop of the frame as it was decoded"

# What differs from the publication besides the fields of a recipe.
PUBLICATIONS: dict[str, Publication] = {
    "finetune-vcop": Publication(
        _VIEWS,
        {
            "pixels": ("in [0, 1]", PIXELS_OF_IMAGENET[1]),
            "validation videos": ("drawn one by one", "whole groups of each class"),
            "validation clip": ("random, with a random crop", "the middle one, with a central crop"),
            "last batch of an epoch": ("smaller", "dropped if it is not full"),
        },
    ),
    "finetune-rspnet": Publication(
        _VIEWS,
        {
            "epoch that is tested": BEST_ON_TEST,
            "frame rate": ("25 per second", _FRAME_RATE),
            "test crop": ("largest central square", _CENTRAL_CROP),
            "random crop": _CROP,
            "pixels": PIXELS_OF_IMAGENET,
        },
    ),
    "finetune-severe": Publication(
        _VIEWS,
        {
            "epoch that is tested": BEST_ON_TEST,
            "frame rate": ("16 per second", _FRAME_RATE),
            "test crop": ("central 112 x 112 pixels after the shorter side became 128", _CENTRAL_CROP),
            "random crop": _CROP,
            "colour changes": ("in random order", "in a fixed order"),
            "pixels": PIXELS_OF_IMAGENET,
        },
    ),
}
