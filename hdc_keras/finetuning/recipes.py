"""Published recipes of fine-tuning: the whole network is trained with labels, from the pretrained weights."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from hdc_keras.config import Experiment

_NO_JITTER = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "fade_static": 0.0}


@dataclass(frozen=True)
class FineTuning:
    """A recipe.

    Attributes:
        version: changed whenever the same weights would get another figure.
        source: where its numbers come from.
        frames: frames per clip.
        stride: source frames from one frame of a clip to the next.
        size: height and width of a clip in pixels.
        epochs: passes over the training videos.
        batch_size: videos per step.
        clips_per_video: clips of each video in an epoch.
        optimizer: "sgd" or "adam".
        learning_rate: at the start.
        schedule: "constant", "cosine" down to 0, or "steps".
        drops: epochs after which the rate is multiplied by `drop_factor`, where the schedule is "steps".
        drop_factor: see `drops`.
        momentum: of SGD.
        weight_decay: part of the gradient, of every weight, as PyTorch's optimizers have it.
        crop: "fixed": a square of `size` pixels at a random place of the frame; or least and greatest share of the
            frame that a crop covers.
        views: further keys of `ViewsConfig`: flips and colours.
        validation: share of the training videos held out to choose the epoch, by loss; at 0 the last one is taken.
        averaged: what of a test video's views is averaged: "logits" or "softmax".
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
        """The recipe as it is used: with the clips that the network was pretrained on, and what `evaluate` changes."""
        data, settings = experiment.data, experiment.evaluate
        epochs = settings.finetune_epochs or self.epochs
        # Where the run itself never flips, left and right tell classes apart.
        views = self.views if experiment.views.flip else {**self.views, "flip": 0.0}
        return replace(
            self,
            frames=data.frames,
            stride=data.stride,
            size=experiment.views.size,
            epochs=epochs,
            batch_size=settings.finetune_batch_size or self.batch_size,
            learning_rate=settings.finetune_learning_rate or self.learning_rate,
            views=views,
            # A recipe's drops keep their places in a shorter training.
            drops=tuple(round(drop * epochs / self.epochs) for drop in self.drops),
        )

    def fitted(self, videos: int, has_validation: bool) -> "FineTuning":
        """The recipe for a set of that many training videos: a batch is no larger, and where none are held out, the
        last epoch is taken."""
        share = self.validation if has_validation else 0.0
        return replace(self, batch_size=min(self.batch_size, videos), validation=share)

    def view_settings(self, frame_size: tuple[int, int]) -> dict[str, Any]:
        """Keys of `ViewsConfig` for the crops and colours of training."""
        if self.crop != "fixed":
            return {**self.views, "size": self.size, "crop_area": self.crop}
        height, width = frame_size
        rows, columns = min(self.size, height), min(self.size, width)
        share, aspect = rows * columns / (height * width), columns / rows
        return {**self.views, "size": self.size, "crop_area": (share, share), "crop_aspect": (aspect, aspect)}


def changed(published: FineTuning, used: FineTuning) -> dict[str, list[Any]]:
    """What is used otherwise than published: [published, used] by name."""
    before, after = ({**asdict(recipe), **recipe.views} for recipe in (published, used))
    return {name: [before[name], after[name]] for name in before if name != "views" and before[name] != after[name]}


FINE_TUNING = {
    "finetune-vcop": FineTuning(
        version=1,
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
        validation=800 / 9537,  # of UCF101's first training split
    ),
    "finetune-rspnet": FineTuning(
        version=1,
        source="RSPNet (Chen et al., AAAI 2021, arXiv 2011.07949), as in its code, config/finetune; but that "
        "keeps the epoch that is best on the test videos, and here the last is taken",
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
        version=1,
        source="SEVERE (Thoker et al., ECCV 2022, arXiv 2203.14221), as its code's configuration for HMDB51 "
        "(112x112x32-fold1)",
        frames=32,
        stride=2,  # 16 frames a second of videos with about 30
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
