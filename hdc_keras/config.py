"""The configuration of a run: one validated description, read from a YAML file, `--set` overrides or Python.

`hdc-keras configs show` prints every key with its default and its description below.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hdc_keras.errors import ConfigError, closest, did_you_mean

Task = Literal["decoupled", "coupled", "spatial", "temporal"]
TemporalNegative = Literal["shifted", "reversed", "shuffled", "frozen"]
Weighting = Literal["uniform", "fixed", "measured"]
BackboneName = Literal[
    "r3d18",
    "r3d34",
    "r3d10",
    "r3d_small",
    "r3d_small_motion",
    "r3d_tiny",
    "mc3_18",
    "mc3_tiny",
    "r2plus1d18",
    "r2plus1d_tiny",
    "c3d",
    "c3d_tiny",
    "s3d",
    "s3d_tiny",
    "x3d_s",
    "x3d_tiny",
    "videomae_vit_s",
    "videomae_vit_b",
    "videomae_vit_tiny",
]
# Numbers of frames and pixels that a token of a transformer sees; clips must be multiples of them.
CLIP_MULTIPLES: dict[str, tuple[int, int]] = {
    "videomae_vit_s": (2, 16),
    "videomae_vit_b": (2, 16),
    "videomae_vit_tiny": (2, 8),
}
# Fewest frames and pixels of a clip, of which the network's strides leave something at every level.
LEAST_CLIPS: dict[str, tuple[int, int]] = {"s3d": (5, 17), "s3d_tiny": (5, 17), "c3d": (8, 16), "c3d_tiny": (8, 16)}
Level = Literal["P2", "P3", "P4", "P5"]
LEVELS: tuple[Level, ...] = get_args(Level)

# When the learning rate is scaled, `train.learning_rate` is its value at this batch size (Goyal et al. 2017, arXiv
# 1706.02677).
_REFERENCE_BATCH = 256

_EPOCHS = 200
# Of runs whose length is given in steps. Saving and checking take seconds, and a pass over few videos hardly longer.
_LEAST_STEPS_PER_EPOCH = 100

# Seeds are unsigned 32-bit integers in numpy and in the backends.
_LARGEST_SEED = 2**32 - 1

# Decoded clips in a batch of an evaluation (our choice): 200 times the default, and three batches are in memory.
_CLIPS_BYTES = 16e9

Probability = Annotated[float, Field(ge=0, le=1)]
Model = TypeVar("Model", bound=BaseModel)
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


Layout = Literal[
    "auto",
    "plain",
    "ucf101",
    "hmdb51",
    "kinetics",
    "something-something-v2",
    "jester",
    "diving48",
    "gym99",
    "gym288",
    "webdataset",
    "huggingface",
]


class DataConfig(_Section):
    """Which videos are read, and how."""

    path: str | None = Field(
        None,
        description="folder of videos, manifest, tar file, saved data set or prepared set; empty: moving shapes, "
        "rendered locally",
    )
    layout: Layout = Field(
        "auto",
        description="how the videos are organised: plain (class folders, loose videos or a manifest), auto (detected), "
        "the data set with official lists: ucf101, hmdb51, kinetics, something-something-v2, jester, diving48, gym99, "
        "gym288 (FineGym), or the files that contain the videos: webdataset (tar), huggingface (Parquet or Arrow)",
    )
    annotations: str | None = Field(
        None,
        description="folder or CSV file with the official split lists; empty: searched for in and next to data.path",
    )
    official_split: Annotated[int, Field(ge=1, le=3)] = Field(
        1, description="which of the three official splits of UCF101 or HMDB51"
    )
    shapes_per_pair: tuple[PositiveInt, PositiveInt] = Field(
        (16, 6), description="moving shapes: number of training and test videos for each of the 36 pairs of classes"
    )
    limit: PositiveInt | None = Field(
        None, description="maximum number of videos per split, drawn at random; empty: all"
    )
    limit_per_class: PositiveInt | None = Field(
        None, description="maximum number of videos per class and split, drawn at random; empty: all"
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="fraction of each class that is held out for testing if the set comes without splits"
    )
    frames: PositiveInt = Field(16, description="frames per clip")
    stride: PositiveInt = Field(2, description="temporal stride: source frames from one frame of a clip to the next")
    fps: PositiveFloat | None = Field(
        None,
        description="frames per second that every video is resampled to, whatever its own rate; strides then count "
        "these frames; empty: every frame of the file",
    )
    decode_size: tuple[PositiveInt, PositiveInt] = Field(
        (128, 171), description="(height, width) of decoded frames in pixels; views are cropped from them"
    )
    decoder: Literal["pyav", "tfio"] = Field(
        "pyav", description="pyav, or tfio, which needs TensorFlow 2.17, tensorflow-io and FFmpeg 4"
    )
    cache_gb: Annotated[float, Field(ge=0)] = Field(
        2.0, description="memory for decoded frames, in GB; a set that fits is decoded only once"
    )
    workers: PositiveInt | None = Field(
        None, description="videos decoded in parallel; empty: chosen by tf.data, or one per core on JAX and PyTorch"
    )
    max_failed_share: Probability = Field(
        0.1, description="the run ends with an error when more than this fraction of the videos cannot be decoded"
    )


class HostLayer(_Section):
    """One layer of `views.host_policy`."""

    layer: str = Field(description="class name of a keras-cv or Keras augmentation layer")
    arguments: dict[str, Any] = Field({}, description="its constructor arguments; value_range defaults to (0, 255)")


class ViewsConfig(_Section):
    """How the views of a video are made. All frames of a clip share every draw."""

    size: PositiveInt = Field(112, description="height and width of a view, in pixels")
    focus: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="side of a square round what moves in a clip, as a fraction of the frame's shorter side; crops are "
        "drawn from this square, and evaluation and exported models see it whole; empty: from the whole frame",
    )
    steady: bool = Field(
        False,
        description="take the camera's motion (shift and zoom) out of each clip, in evaluation and exported models "
        "too, so that only what moves itself is seen to move",
    )
    crop_area: tuple[PositiveFloat, Annotated[float, Field(le=1)]] = Field(
        (0.3, 1.0), description="range of a crop's area, as a fraction of the frame or of the square of `focus`"
    )
    crop_aspect: tuple[PositiveFloat, PositiveFloat] = Field(
        (3 / 4, 4 / 3), description="range of a crop's aspect ratio, width / height"
    )
    flip: Probability = Field(
        0.5, description="probability of a left-right flip; use 0 if classes differ in left and right"
    )
    jitter: Probability = Field(
        0.8, description="probability of colour jitter: brightness, contrast, saturation and hue change together"
    )
    brightness: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.4, description="jitter multiplies brightness by a factor from [1 - this, 1 + this]"
    )
    contrast: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.4, description="jitter multiplies contrast by a factor from [1 - this, 1 + this]"
    )
    saturation: Annotated[float, Field(ge=0, le=1)] = Field(
        0.4, description="jitter multiplies saturation by a factor from [1 - this, 1 + this]"
    )
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1, description="jitter rotates hue by a fraction of the colour circle from [-this, this]"
    )
    grey: Probability = Field(0.2, description="probability of conversion to greyscale")
    blur: Probability = Field(0.5, description="probability of Gaussian blur")
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.05, 1.0),
        description="range of the blur's standard deviation in pixels at view size 112; it scales with the view size "
        "(SimCLR's 0.1 to 2.0 at 224)",
    )
    min_gap: Annotated[int, Field(ge=0)] = Field(
        8,
        description="minimum source frames between the starts of a video's two windows, if the video is long enough",
    )
    second_strides: tuple[PositiveInt, ...] = Field(
        (), description="temporal strides from which the second window's stride is drawn; empty: only data.stride"
    )
    reverse: Probability = Field(0.0, description="probability that the second window is played backwards")
    fade_static: Probability = Field(
        0.5, description="probability that static content fades towards grey, by a random fraction"
    )
    own_colour: Probability = Field(
        1.0, description="probability that the spatial positive gets a separate colour draw instead of the anchor's"
    )
    still: Probability = Field(
        0.0,
        description="probability that the spatial positive is a still: one of its frames throughout, so that the task "
        "cannot be solved by motion",
    )
    temporal_negatives: tuple[TemporalNegative, ...] = Field(
        (),
        description="extra negatives of the temporal task, which look like the anchor but differ in time: any of "
        "shifted, reversed, shuffled, frozen",
    )
    host_policy: tuple[HostLayer, ...] = Field(
        (),
        description="keras-cv or Keras layers applied in tf.data before all other augmentation, one draw per clip, "
        "as in [{layer: RandAugment}]; TensorFlow only",
    )

    @field_validator("crop_area", "crop_aspect", "blur_sigma")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the first number must not be greater than the second")
        return value

    @field_validator("temporal_negatives")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each kind may be given once")
        return value


class ModelConfig(_Section):
    """The network that is pretrained."""

    backbone: BackboneName = Field("r3d18", description=f"the network: {', '.join(get_args(BackboneName))}")
    weights: str | None = Field(
        None,
        description="local .pth file with torchvision's Kinetics weights to start from (r3d18, mc3_18, r2plus1d18)",
    )
    init_from: str | None = Field(
        None, description="run or .keras file whose weights to start from; only weights are taken, not the optimizer"
    )

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        if self.weights and self.init_from:
            raise ValueError("weights and init_from are both given; a network can start from only one of them")
        return self


class TaskLevels(_Section):
    """Which stages of the backbone carry the loss of each task."""

    spatial: tuple[Level, ...] = Field(("P2", "P3"), min_length=1, description="stages with a spatial loss")
    temporal: tuple[Level, ...] = Field(("P4", "P5"), min_length=1, description="stages with a temporal loss")
    coupled: tuple[Level, ...] = Field(LEVELS, min_length=1, description="stages with a coupled loss")

    @field_validator("spatial", "temporal", "coupled")
    @classmethod
    def _in_order(cls, value: tuple[Level, ...]) -> tuple[Level, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each level may be given once")
        return tuple(level for level in LEVELS if level in value)


class ContrastConfig(_Section):
    """What is contrasted, at which levels, and how the losses are weighted."""

    task: Task = Field(
        "decoupled",
        description="decoupled (HDC: a spatial and a temporal task), coupled, or one task: spatial, temporal",
    )
    levels: TaskLevels = Field(TaskLevels(), description="backbone stages, P2 to P5, that carry each task's loss")
    embedding_dim: PositiveInt = Field(128, description="dimension of the embeddings")
    hidden_dim: PositiveInt | None = Field(
        None, description="hidden units of a projection head; empty: as many as its stage has channels"
    )
    temperature: PositiveFloat = Field(0.1, description="softmax temperature of the contrastive loss")
    temporal_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="lambda: weight of the temporal loss; the spatial loss has weight 1"
    )
    temporal_negative_weight: PositiveFloat = Field(
        1.0, description="each of views.temporal_negatives counts as this many ordinary negatives in the softmax"
    )
    weighting: Weighting = Field(
        "measured", description="how levels are weighted: uniform, fixed (fixed_weights) or measured (by invariance)"
    )
    fixed_weights: dict[Level, Annotated[float, Field(ge=0)]] = Field(
        {"P2": 0.25, "P3": 0.5, "P4": 0.75, "P5": 1.0},
        description="weight of each level if weighting is fixed",
    )
    gamma: float = Field(1.0, description="measured weights: exponent on the invariance")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="measured weights: momentum of the invariance's moving average"
    )
    weight_range: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.1, 10.0),
        description="measured weights: limits relative to their mean; clipped weights are scaled to mean 1 again",
    )
    measure_on: Literal["features", "embeddings"] = Field(
        "features", description="measured weights: measure the invariance of pooled features or of embeddings"
    )
    negatives: Literal["batch", "queue"] = Field(
        "batch",
        description="where negatives come from: the other videos of the batch, or a queue of the latest positives, "
        "which the moving average of the network encodes (MoCo); train.ema is its momentum",
    )
    queue_length: PositiveInt | dict[str, PositiveInt] = Field(
        4096,
        description="negatives in the queue of each level and task, or a number for each, as in "
        "{P2_spatial: 1024, P5_temporal: 16384}",
    )

    @field_validator("queue_length", mode="before")
    @classmethod
    def _lengths(cls, value: Any) -> Any:
        numbers = list(value.values()) if isinstance(value, dict) else [value]
        if not numbers or any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(
                "expected a whole number of 1 or more, or one for each level and task, as in {P2_spatial: 1024, ...}"
            )
        return value

    @property
    def pairs(self) -> tuple[tuple[Level, str], ...]:
        """Each (level, task) that has a loss, shallowest level first."""
        tasks = ("spatial", "temporal") if self.task == "decoupled" else (self.task,)
        return tuple((level, task) for level in self.used_levels for task in tasks if level in self.levels_of(task))

    def queue_length_of(self, level: str, task: str) -> int:
        """Negatives in the queue of a level and task."""
        return self.queue_length if isinstance(self.queue_length, int) else self.queue_length[f"{level}_{task}"]

    def levels_of(self, task: str) -> tuple[Level, ...]:
        """Levels that carry a loss of "spatial", "temporal" or "coupled"."""
        return getattr(self.levels, task)

    @property
    def used_levels(self) -> tuple[Level, ...]:
        """Levels that carry any loss, shallowest first."""
        tasks = ("spatial", "temporal") if self.task == "decoupled" else (self.task,)
        return tuple(level for level in LEVELS if any(level in self.levels_of(task) for task in tasks))

    @model_validator(mode="after")
    def _complete(self) -> "ContrastConfig":
        missing = [level for level in self.used_levels if level not in self.fixed_weights]
        if self.weighting == "fixed" and missing:
            raise ValueError(f"fixed_weights needs a number for {', '.join(missing)}")
        if self.weight_range[0] > self.weight_range[1]:
            raise ValueError("weight_range: the first number must not be greater than the second")
        if self.negatives == "queue" and not isinstance(self.queue_length, int):
            names = {f"{level}_{task}" for level, task in self.pairs}
            if names != set(self.queue_length):
                raise ValueError(
                    f"queue_length: expected a number for each of {', '.join(sorted(names))}. Received: "
                    f"{', '.join(sorted(self.queue_length))}"
                )
        return self


class Length(NamedTuple):
    """How long a run is.

    Attributes:
        steps_per_epoch: steps of an epoch. The last epoch may be shorter.
        steps: steps of the whole run.
    """

    steps_per_epoch: int
    steps: int

    @property
    def epochs(self) -> int:
        """Epochs of the run, including a last one that is shorter."""
        return self.epochs_after(self.steps)

    def epochs_after(self, step: int) -> int:
        """Number of epochs that are finished after a step. The run's last step finishes an epoch."""
        return -(-step // self.steps_per_epoch) if step >= self.steps else step // self.steps_per_epoch


class TrainConfig(_Section):
    """How the network is trained, and on which devices."""

    epochs: PositiveInt | None = Field(
        None, description="passes over the training videos; empty: train.steps, or 200 if that is empty too"
    )
    steps: PositiveInt | None = Field(
        None,
        description="training steps, instead of epochs; an epoch, after which training logs and saves, is then as many "
        f"whole passes over the videos as take {_LEAST_STEPS_PER_EPOCH} steps or more",
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(64, description="videos per step, summed over all devices")
    optimizer: Literal["sgd", "adamw", "lars"] = Field(
        "sgd", description="sgd (as PyTorch's, with Nesterov momentum 0.9), adamw or lars (for large batches)"
    )
    learning_rate: PositiveFloat = Field(0.1, description="peak learning rate, reached after the warm-up")
    scale_learning_rate: Literal["none", "linear", "sqrt"] = Field(
        "none", description="none, or scale learning_rate by batch_size / 256 (linear) or by its square root (sqrt)"
    )
    clip_norm: PositiveFloat | None = Field(
        None, description="maximum global norm of the gradient, over all devices; empty: no clipping"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        10, description="epochs of linear warm-up, at most half of the run; then cosine decay to 0"
    )
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="weight decay of kernels, as each optimizer defines it: sgd and lars add it to the gradient, as "
        "PyTorch does, and adamw decays the weights; biases and norm layers have none; empty: 1e-4 with sgd, 0.05 with "
        "adamw, 1e-6 with lars",
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="momentum of the moving average of all weights, which is then evaluated and exported in place of "
        "the weights; empty: none, or 0.999 if contrast.negatives is queue",
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32",
        description="float32, mixed_bfloat16 or mixed_float16 (with loss scaling); losses are always float32",
    )
    jit: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compile the step with XLA: on (JAX and TensorFlow only), off, or auto (on with JAX, and with "
        "TensorFlow on a GPU or TPU)",
    )
    strategy: Literal["auto", "one_device", "mirrored", "multi_worker"] = Field(
        "auto",
        description="devices that share a batch: one_device, mirrored (all on this machine), multi_worker (all on "
        "several machines) or auto (all that are found)",
    )
    batch_norm: Literal["auto", "shuffled", "local", "synchronised"] = Field(
        "auto",
        description="the backbone's batch statistics when a batch is computed in groups, which are devices or cached "
        "micro-batches: of each group, with positives in random other groups than their anchors (shuffled) or in the "
        "same (local: the statistics then tell which candidate is the positive), or of all devices (synchronised); "
        "auto is shuffled. JAX always synchronises its devices and shuffles its micro-batches; TensorFlow supports "
        "synchronised without XLA and micro-batches, PyTorch does not support it",
    )
    micro_batches: PositiveInt = Field(
        1, description="pieces into which each device splits its videos; it processes one at a time, to save memory"
    )
    accumulate: Literal["cached", "plain"] = Field(
        "cached",
        description="with micro-batches, cached (GradCache) gives the negatives and gradient of the whole batch at the "
        "cost of a second forward pass; plain takes negatives only from the same micro-batch",
    )
    rematerialise: bool = Field(
        False, description="recompute activations inside the backbone's blocks in the backward pass, to save memory"
    )
    deterministic: bool = Field(
        False,
        description="bit-identical runs on the same machine; slower, and on TensorFlow data loading is slower too",
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="after a step with a non-finite loss or gradient: stop the run, or skip the step and go on; its "
        "gradient is never applied",
    )
    knn_every: Annotated[int, Field(ge=0)] = Field(
        5, description="epochs between kNN checks among training videos, which need labels; 0: never"
    )
    checkpoint_every: PositiveInt = Field(1, description="epochs between checkpoints")
    checkpoint_minutes: PositiveFloat | None = Field(
        30, description="minutes after which a checkpoint is saved within an epoch, too; empty: never"
    )
    keep_checkpoints: PositiveInt = Field(2, description="newest checkpoints to keep, in addition to the best one")

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("epochs") is None and values.get("steps") is None:
            return {**values, "epochs": _EPOCHS}
        return values

    @model_validator(mode="after")
    def _not_two_lengths(self) -> "TrainConfig":
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs ({self.epochs}) and steps ({self.steps}) are both given; a run ends after one of them"
            )
        return self

    def length(self, steps_per_pass: int) -> "Length":
        """How long a run is, for videos that fill `steps_per_pass` batches."""
        if self.steps is None:
            assert self.epochs is not None
            return Length(steps_per_pass, self.epochs * steps_per_pass)
        return Length(-(-_LEAST_STEPS_PER_EPOCH // steps_per_pass) * steps_per_pass, self.steps)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up, at this batch size."""
        factor = self.batch_size / _REFERENCE_BATCH
        return self.learning_rate * {"none": 1.0, "linear": factor, "sqrt": factor**0.5}[self.scale_learning_rate]

    @model_validator(mode="after")
    def _divisible(self) -> "TrainConfig":
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batches ({self.micro_batches})"
            )
        if self.accumulate == "plain" and self.batch_size < 2 * self.micro_batches:
            raise ValueError(
                "plain micro-batches of one video have no negatives: use fewer micro_batches, or accumulate: cached"
            )
        return self


class EvaluateConfig(_Section):
    """How a pretrained backbone is evaluated."""

    labels_per_class: PositiveInt | None = Field(
        None, description="labelled training videos per class that a protocol may learn from; empty: all"
    )
    clips: PositiveInt = Field(10, description="evenly spaced clips per video, averaged")
    crops: PositiveInt = Field(
        1, description="crops per clip, spread along the frame's longer side; 3 crops of 10 clips are 10x3 views"
    )
    seeds: PositiveInt = Field(
        1, description="repetitions of random protocols (fine-tuning, SGD probes, few labels), with different seeds"
    )
    batch_size: PositiveInt = Field(8, description="videos per batch of feature extraction")
    knn_neighbours: PositiveInt = Field(20, description="kNN: number of neighbours")
    knn_temperature: PositiveFloat = Field(0.07, description="kNN: temperature of the similarity-weighted vote")
    recall_at: tuple[PositiveInt, ...] = Field((1, 5, 10, 20, 50), description="retrieval: values of k for R@k")
    linear_l2: tuple[PositiveFloat, ...] = Field(
        (1e-3, 1e-2, 1e-1),
        min_length=1,
        description="linear probe: candidate L2 penalties; the best one on held-out training videos is used",
    )
    finetune_epochs: PositiveInt | None = Field(None, description="fine-tuning: epochs; empty: the protocol's")
    finetune_batch_size: PositiveInt | None = Field(
        None, description="fine-tuning: videos per step; empty: the protocol's"
    )
    finetune_learning_rate: PositiveFloat | None = Field(
        None, description="fine-tuning: learning rate; empty: the protocol's"
    )


def require_no_temporal_negatives(views: ViewsConfig) -> None:
    """Raise `ValueError` if there are temporal negatives, which a queue excludes.

    They are candidates for the positive only, because they share the augmentation of the anchor. With a queue, only the
    anchor looks for its positive.
    """
    if views.temporal_negatives:
        raise ValueError(
            "contrast.negatives: a queue excludes views.temporal_negatives, which the positive is compared with; with "
            "a queue, only the anchor is compared"
        )


class Experiment(_Section):
    """The whole configuration of a run."""

    name: str = Field("experiment", min_length=1, description="name of the experiment and of its run directory")
    seed: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] = Field(0, description="seed of all random choices")
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    contrast: ContrastConfig = ContrastConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _queue_is_possible(self) -> "Experiment":
        if self.contrast.negatives == "queue":
            require_no_temporal_negatives(self.views)
            if self.train.micro_batches > 1 and self.train.accumulate == "plain":
                raise ValueError("contrast.negatives: a queue needs train.accumulate: cached")
        return self

    @model_validator(mode="after")
    def _frames_have_differences(self) -> "Experiment":
        if self.model.backbone == "r3d_small_motion" and self.data.frames < 2:
            raise ValueError("data.frames (1): r3d_small_motion sees differences between frames, so it needs 2 or more")
        return self

    @model_validator(mode="after")
    def _clips_suit_the_network(self) -> "Experiment":
        name = self.model.backbone
        lengths = {"data.frames": self.data.frames, "views.size": self.views.size}
        for (key, length), multiple in zip(lengths.items(), CLIP_MULTIPLES.get(name, (1, 1)), strict=True):
            if length % multiple:
                raise ValueError(f"{key} ({length}): {name} needs a multiple of {multiple}")
        for (key, length), least in zip(lengths.items(), LEAST_CLIPS.get(name, (1, 1)), strict=True):
            if length < least:
                raise ValueError(f"{key} ({length}): {name} needs {least} or more")
        return self

    @model_validator(mode="after")
    def _seeds_in_range(self) -> "Experiment":
        last = self.seed + self.evaluate.seeds - 1
        if last > _LARGEST_SEED:
            raise ValueError(
                f"seed ({self.seed}) and evaluate.seeds ({self.evaluate.seeds}): the last of the consecutive seeds is "
                f"{last}, but the largest possible one is {_LARGEST_SEED}"
            )
        return self

    @model_validator(mode="after")
    def _clips_fit_into_memory(self) -> "Experiment":
        (height, width), frames, evaluate = self.data.decode_size, self.data.frames, self.evaluate
        size = evaluate.batch_size * evaluate.clips * frames * height * width * 3
        if size > _CLIPS_BYTES:
            raise ValueError(
                f"evaluate.clips ({evaluate.clips}): the clips of evaluate.batch_size ({evaluate.batch_size}) videos, "
                f"of {frames} frames with {height} x {width} pixels, take {size / 1e9:,.0f} GB of memory, but at most "
                f"{_CLIPS_BYTES / 1e9:g} GB are allowed"
            )
        return self


_EVERY_LEVEL = {"spatial": LEVELS, "temporal": LEVELS, "coupled": LEVELS}
_TOP_LEVEL = {task: LEVELS[-1:] for task in _EVERY_LEVEL}
# The method and the ablations of the paper: the keys that each preset sets, by section.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "hdc": {"contrast": {"task": "decoupled", "levels": TaskLevels().model_dump(), "weighting": "measured"}},
    "coupled": {"contrast": {"task": "coupled", "levels": _EVERY_LEVEL, "weighting": "measured"}},
    "spatial": {"contrast": {"task": "spatial", "levels": _EVERY_LEVEL, "weighting": "measured"}},
    "temporal": {"contrast": {"task": "temporal", "levels": _EVERY_LEVEL, "weighting": "measured"}},
    "hdc-every-level": {"contrast": {"task": "decoupled", "levels": _EVERY_LEVEL, "weighting": "measured"}},
    "hdc-uniform": {"contrast": {"task": "decoupled", "levels": TaskLevels().model_dump(), "weighting": "uniform"}},
    "hdc-top-level": {"contrast": {"task": "decoupled", "levels": _TOP_LEVEL, "weighting": "uniform"}},
}


def preset(name: str) -> dict[str, dict[str, Any]]:
    """The keys that a preset sets, by section, as arguments of `HDC`: `HDC(backbone, **preset("coupled"))`.

    Args:
        name: `hdc` (decoupled: spatial task at P2 and P3, temporal task at P4 and P5, measured weights), `coupled`,
            `spatial` or `temporal` (one task at every level), `hdc-every-level` (both tasks at every level),
            `hdc-uniform` (like `hdc`, with equal weights), `hdc-top-level` (both tasks at P5 only, equal weights).

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset `{name}`.{did_you_mean(name, PRESETS)} Known: {', '.join(PRESETS)}.")
    return {section: dict(values) for section, values in PRESETS[name].items()}


def load_experiment(
    source: str | Path,
    overrides: list[str] | None = None,
    preset_name: str | None = None,
    literals: Mapping[str, Any] | None = None,
) -> Experiment:
    """Read a YAML file, apply a preset, then `literals`, then `section.key=value` overrides, and validate.

    Args:
        source: the YAML file.
        overrides: texts as in `--set`; each value is parsed as YAML.
        preset_name: one of `PRESETS`.
        literals: values by `section.key`, used as they are. Paths belong here: YAML reads `clips #1` as `clips`.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong. The message gives the file, the key, what
            was expected, and the closest valid key.
    """
    path = Path(source)
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not a text file in UTF-8 ({error.reason} at byte {error.start}).") from error
    except _YAML_ERRORS as error:
        raise ConfigError(f"{path}: is not valid YAML.\n{error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines. Received: {type(values).__name__}")
    for section, changes in (preset(preset_name) if preset_name else {}).items():
        for key, value in changes.items():
            _assign(values, [section, key], value, f"preset {preset_name}")
    for key, value in (literals or {}).items():
        _drop_other_length(values, key, value)
        _assign(values, key.split("."), value, key)
    set_by: dict[str, str] = {}
    for override in overrides or []:
        set_by[_apply_override(values, override, set_by)] = f"--set {override}"
    return validate(Experiment, values, str(path), set_by)


def validate(model: type[Model], values: Any, where: str, set_by: Mapping[str, str] | None = None) -> Model:
    """Validate `values` as `model`.

    Args:
        model: a section, or `Experiment`.
        values: a dict of its keys.
        where: the source of the values, such as a file name, for the message.
        set_by: by `section.key`, the source of the values that do not come from `where`.

    Raises:
        ConfigError: lists every problem, by source.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        places = [problem["loc"] for problem in found]
        by_source: dict[str, list[str]] = {}
        for problem in found:
            place = problem["loc"]
            # An invalid item makes its list too short as well.
            if not any(other[: len(place)] == place and len(other) > len(place) for other in places):
                source = _source(problem, where, set_by or {})
                by_source.setdefault(source, []).append(_describe(problem, model))
        problems = (f"{source}:\n  " + "\n  ".join(texts) for source, texts in by_source.items())
        raise ConfigError("\n".join(problems)) from error


def dump_experiment(experiment: Experiment) -> str:
    """The experiment as YAML, with every key."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)


class _YamlLoader(yaml.SafeLoader):
    """Reads only `true` and `false` as booleans, as YAML 1.2 does. YAML 1.1 also reads `on`, a value of `train.jit`."""


_BOOLEAN = "tag:yaml.org,2002:bool"
_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlLoader.add_implicit_resolver(_BOOLEAN, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))
# PyYAML lets through a ValueError for `2026-02-30`, and a RecursionError for a thousand brackets.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _YamlLoader)


def _apply_override(values: dict[str, Any], override: str, set_by: Mapping[str, str]) -> str:
    """Apply a text as in `--set`, and return its key. Earlier overrides are in `set_by`."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: expected section.key=value, as in --set train.epochs=50")
    try:
        value = _parse_yaml(text)
    except _YAML_ERRORS as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML ({error})") from error
    if _OTHER_LENGTH.get(key) not in set_by:
        _drop_other_length(values, key, value)
    _assign(values, key.split("."), value, f"--set {override}")
    return key


_OTHER_LENGTH = {"train.epochs": "train.steps", "train.steps": "train.epochs"}


def _drop_other_length(values: dict[str, Any], key: str, value: Any) -> None:
    """A length in steps replaces one in epochs that was given before, and the other way round."""
    train = values.get("train")
    if key in _OTHER_LENGTH and value is not None and isinstance(train, dict):
        train.pop(_OTHER_LENGTH[key].removeprefix("train."), None)


def _assign(values: dict[str, Any], key: list[str], value: Any, where: str) -> None:
    *sections, last = key
    for depth, section in enumerate(sections, 1):
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: `{'.'.join(key[:depth])}` is a value, not a section")
    values[last] = value


def _source(problem: Any, where: str, set_by: Mapping[str, str]) -> str:
    """Where the value of a problem comes from: one of `set_by`, or `where`, or both if several keys are at odds."""
    key = ".".join(map(str, problem["loc"]))
    exact = [source for name, source in set_by.items() if f"{key}.".startswith(f"{name}.")]
    within = [source for name, source in set_by.items() if not key or name.startswith(f"{key}.")]
    if exact or (within and problem["type"] == "extra_forbidden"):
        return (exact or within)[-1]
    return f"{where} with {', '.join(within)}" if within else where


def _describe(problem: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"] if part != "[key]"]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], int):
        location.pop()
        message = "expected more values"
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        meant = " or ".join(f"`{name}`" for name in _meant(key, _keys(model)))
        hint = f" Did you mean {meant}?" if meant else ""
        return f"unknown key `{key}`.{hint} `hdc-keras configs show` lists all keys."
    if problem["type"] == "model_type":
        within = [name for name in _keys(model) if not key or name.startswith(f"{key}.")]
        message = f"expected a section with the keys {', '.join(within)}"
    if problem["type"] == "tuple_type":
        message = "expected a list, as in [1, 2]"
    if problem["type"] == "literal_error":
        allowed = re.findall(r"'([^']+)'", problem["ctx"]["expected"])
        meant = did_you_mean(str(problem["input"]), allowed)
        message += f".{meant}" if meant else ""
    received = "" if isinstance(problem["input"], dict) else f" Received: {problem['input']!r}"
    end = "" if message.endswith("?") else "."
    return f"`{key}`: {message[:1].lower()}{message[1:]}{end}{received}" if key else message


def _meant(key: str, known: Sequence[str]) -> list[str]:
    """Known keys that may be meant by `key`: a similar name in its section, or the same or a similar one elsewhere."""
    section, _, name = key.rpartition(".")
    parts = [candidate.rpartition(".") for candidate in known]
    near = closest(name, [last for parent, _, last in parts if parent == section])
    beside = [f"{section}.{near}" if section else near] if near else []
    elsewhere = [last for _, _, last in parts]
    meant = name if near or name in elsewhere else closest(name, elsewhere)
    return [*beside, *(candidate for candidate, (_, _, last) in zip(known, parts, strict=True) if last == meant)]


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += [prefix + name, *_keys(field.annotation, f"{prefix}{name}.")]
        else:
            keys.append(prefix + name)
    return keys
