"""The experiment: one validated description of everything a run does. YAML files, `--set` and Python share it."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hdc_keras.errors import ConfigError

Task = Literal["decoupled", "coupled", "spatial", "temporal"]
TemporalNegative = Literal["shifted", "reversed", "shuffled", "frozen"]
Weighting = Literal["uniform", "fixed", "measured"]
BackboneName = Literal[
    "r3d18",
    "r3d34",
    "r3d10",
    "r3d_tiny",
    "r2plus1d18",
    "r2plus1d_tiny",
    "c3d",
    "c3d_tiny",
    "s3d",
    "s3d_tiny",
]
Level = Literal["P2", "P3", "P4", "P5"]
LEVELS: tuple[Level, ...] = get_args(Level)

# Videos a step that a learning rate is given for where it is scaled (Goyal et al. 2017, arXiv 1706.02677).
_REFERENCE_BATCH = 256

Probability = Annotated[float, Field(ge=0, le=1)]
Model = TypeVar("Model", bound=BaseModel)
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(_Section):
    """Which videos are read, and how."""

    path: str | None = Field(None, description="folder or CSV manifest; moving shapes when empty")
    layout: Literal["auto", "plain", "ucf101", "hmdb51", "kinetics"] = Field(
        "auto", description="how the set is laid out; plain: class folders, loose videos or a manifest"
    )
    annotations: str | None = Field(
        None, description="folder (or CSV) of the official lists; looked for in and beside the videos when empty"
    )
    official_split: Annotated[int, Field(ge=1, le=3)] = Field(1, description="which split of UCF101 or HMDB51")
    shapes_per_pair: tuple[PositiveInt, PositiveInt] = Field(
        (16, 6), description="moving shapes: training and test videos for each of the 36 pairs of classes"
    )
    limit: PositiveInt | None = Field(None, description="use at most this many videos of each split, drawn at random")
    limit_per_class: PositiveInt | None = Field(
        None, description="use at most this many videos of each class of each split, drawn at random"
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="share of each class kept for testing where the set has no splits of its own"
    )
    frames: PositiveInt = Field(16, description="frames per clip")
    stride: PositiveInt = Field(2, description="source frames from one frame of a clip to the next")
    decode_size: tuple[PositiveInt, PositiveInt] = Field(
        (128, 171), description="(height, width) frames are decoded to, in pixels; the views crop from it"
    )
    decoder: Literal["pyav", "tfio"] = Field(
        "pyav", description="what decodes files; tfio needs TensorFlow 2.17, tensorflow-io and FFmpeg 4"
    )
    cache_gb: Annotated[float, Field(ge=0)] = Field(
        2.0, description="memory for decoded frames; small sets are decoded once"
    )
    workers: PositiveInt | None = Field(None, description="videos decoded at once; chosen by tf.data when empty")
    max_failed_share: Probability = Field(0.1, description="share of undecodable videos that ends the run")


class HostLayer(_Section):
    """One layer of `views.host_policy`."""

    layer: str = Field(description="name of a keras-cv or Keras augmentation layer")
    arguments: dict[str, Any] = Field({}, description="of its constructor; value_range is (0, 255) unless given")


class ViewsConfig(_Section):
    """How the views of a video are made. All frames of a clip share every draw."""

    size: PositiveInt = Field(112, description="height and width of a view in pixels")
    crop_area: tuple[PositiveFloat, Annotated[float, Field(le=1)]] = Field(
        (0.3, 1.0), description="least and greatest share of the frame that a crop covers"
    )
    crop_aspect: tuple[PositiveFloat, PositiveFloat] = Field(
        (3 / 4, 4 / 3), description="least and greatest width / height of a crop"
    )
    flip: Probability = Field(0.5, description="probability of a left-right flip; 0 where direction is a class")
    jitter: Probability = Field(0.8, description="probability of colour jitter")
    brightness: Annotated[float, Field(ge=0, lt=1)] = Field(0.4, description="factor drawn from 1 -/+ this")
    contrast: Annotated[float, Field(ge=0, lt=1)] = Field(0.4, description="factor drawn from 1 -/+ this")
    saturation: Annotated[float, Field(ge=0, le=1)] = Field(0.4, description="factor drawn from 1 -/+ this")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1, description="turn of the colour circle, drawn from -/+ this"
    )
    grey: Probability = Field(0.2, description="probability of greyscale")
    blur: Probability = Field(0.5, description="probability of Gaussian blur")
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.1, 2.0),
        description="least and greatest standard deviation of the blur in pixels, at a view size of 112",
    )
    min_gap: Annotated[int, Field(ge=0)] = Field(
        8,
        description="least distance of the two windows' starts in source frames, where the video is long enough",
    )
    second_strides: tuple[PositiveInt, ...] = Field(
        (), description="strides the second window is drawn from; only data.stride when empty"
    )
    reverse: Probability = Field(0.0, description="probability that the second window runs backwards")
    fade_static: Probability = Field(
        0.5, description="probability that what does not move fades towards grey, by a share drawn from 0 to 1"
    )
    own_colour: Probability = Field(
        1.0, description="probability that the spatial positive has colours of its own; otherwise the anchor's"
    )
    temporal_negatives: tuple[TemporalNegative, ...] = Field(
        (), description="time-changed versions of the anchor that the temporal task must tell from it"
    )
    host_policy: tuple[HostLayer, ...] = Field(
        (),
        description="keras-cv layers applied on the host before all this, as in [{layer: RandAugment}]; a draw a clip",
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

    backbone: BackboneName = Field("r3d18", description="a name in `hdc_keras.backbones.BACKBONES`")
    weights: str | None = Field(
        None, description="start from torchvision's Kinetics weights in this local .pth file (r3d18, r2plus1d18)"
    )
    init_from: str | None = Field(
        None, description="start from the weights of this run or .keras file; all else begins anew"
    )

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        if self.weights and self.init_from:
            raise ValueError("weights and init_from are both given: a network starts from one of them")
        return self


class TaskLevels(_Section):
    """At which stages of the backbone each task is done."""

    spatial: tuple[Level, ...] = Field(("P2", "P3"), min_length=1, description="levels of the spatial task")
    temporal: tuple[Level, ...] = Field(("P4", "P5"), min_length=1, description="levels of the temporal task")
    coupled: tuple[Level, ...] = Field(LEVELS, min_length=1, description="levels of the coupled task")

    @field_validator("spatial", "temporal", "coupled")
    @classmethod
    def _in_order(cls, value: tuple[Level, ...]) -> tuple[Level, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each level may be given once")
        return tuple(level for level in LEVELS if level in value)


class ContrastConfig(_Section):
    """What is contrasted, at which levels, and how the losses are weighted."""

    task: Task = Field("decoupled", description="decoupled (HDC), coupled, or only one of the two tasks")
    levels: TaskLevels = Field(TaskLevels(), description="stages of the backbone that carry each task's loss")
    embedding_dim: PositiveInt = Field(128, description="width of an embedding")
    hidden_dim: PositiveInt | None = Field(None, description="width of a head's hidden layer; the stage's when empty")
    temperature: PositiveFloat = Field(0.1, description="softmax temperature")
    temporal_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="lambda: weight of the temporal task")
    temporal_negative_weight: PositiveFloat = Field(
        1.0, description="how many negatives each temporal negative counts for in the softmax"
    )
    weighting: Weighting = Field("measured", description="how levels are weighted: uniform, fixed or measured")
    fixed_weights: dict[Level, Annotated[float, Field(ge=0)]] = Field(
        {"P2": 0.25, "P3": 0.5, "P4": 0.75, "P5": 1.0},
        description="weight by level, where weighting is fixed",
    )
    gamma: float = Field(1.0, description="exponent on the measured invariance")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="of the invariance's moving average")
    weight_range: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.1, 10.0), description="measured weights are clipped to this before they are scaled to mean 1"
    )
    measure_on: Literal["features", "embeddings"] = Field(
        "features", description="where invariance is measured: pooled features or embeddings"
    )

    def levels_of(self, task: str) -> tuple[Level, ...]:
        """Levels that carry a loss of "spatial", "temporal" or "coupled"."""
        return getattr(self.levels, task)

    @property
    def used_levels(self) -> tuple[Level, ...]:
        """Levels that carry any loss, in order."""
        tasks = ("spatial", "temporal") if self.task == "decoupled" else (self.task,)
        return tuple(level for level in LEVELS if any(level in self.levels_of(task) for task in tasks))

    @model_validator(mode="after")
    def _complete(self) -> "ContrastConfig":
        missing = [level for level in self.used_levels if level not in self.fixed_weights]
        if self.weighting == "fixed" and missing:
            raise ValueError(f"fixed_weights needs a number for {', '.join(missing)}")
        if self.weight_range[0] > self.weight_range[1]:
            raise ValueError("weight_range: the first number must not be greater than the second")
        return self


class TrainConfig(_Section):
    """How it is trained."""

    epochs: PositiveInt = Field(200, description="passes over the training videos")
    batch_size: Annotated[int, Field(ge=2)] = Field(64, description="videos per step, over all devices")
    optimizer: Literal["sgd", "adamw", "lars"] = Field("sgd", description="sgd has Nesterov momentum 0.9")
    learning_rate: PositiveFloat = Field(0.1, description="greatest learning rate, after the warm-up")
    scale_learning_rate: Literal["none", "linear", "sqrt"] = Field(
        "none", description="learning_rate is that of 256 videos a step; linear or sqrt: it follows batch_size"
    )
    clip_norm: PositiveFloat | None = Field(None, description="greatest norm of the whole gradient; none when empty")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(10, description="linear warm-up; then a cosine down to 0")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="on kernels; biases and norms have none")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32", description="compute type; losses are float32 in any case"
    )
    jit: Literal["auto", "on", "off"] = Field("auto", description="XLA; auto is on for a GPU or TPU, off for a CPU")
    strategy: Literal["auto", "one_device", "mirrored", "multi_worker"] = Field(
        "auto", description="devices that share a batch: all of this machine (mirrored), or of several (multi_worker)"
    )
    batch_norm: Literal["auto", "local", "synchronised"] = Field(
        "auto",
        description="the backbone's statistics over several devices: of each (local), or of all; auto is local on "
        "TensorFlow; JAX can only do synchronised, and XLA on TensorFlow only local",
    )
    micro_batches: PositiveInt = Field(1, description="pieces a device's videos are worked through in, to save memory")
    accumulate: Literal["cached", "plain"] = Field(
        "cached",
        description="micro-batches: cached has the negatives and gradient of the whole batch (GradCache), for a second "
        "forward pass; plain has only each one's own negatives",
    )
    rematerialise: bool = Field(False, description="compute within blocks again when going backward, to save memory")
    deterministic: bool = Field(
        False, description="the same bits from every run on the same machine; slower, and on TensorFlow data is too"
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="what follows a step with numbers that are not finite; its gradient is left out in any case"
    )
    knn_every: Annotated[int, Field(ge=0)] = Field(
        5, description="epochs between kNN checks on held-out videos, where labels exist; 0 for none"
    )
    checkpoint_every: PositiveInt = Field(1, description="epochs between checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="checkpoints kept, newest first; the best is kept besides")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up, at this batch size."""
        share = self.batch_size / _REFERENCE_BATCH
        return self.learning_rate * {"none": 1.0, "linear": share, "sqrt": share**0.5}[self.scale_learning_rate]

    @model_validator(mode="after")
    def _divisible(self) -> "TrainConfig":
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batches ({self.micro_batches})"
            )
        if self.accumulate == "plain" and self.batch_size < 2 * self.micro_batches:
            raise ValueError("plain micro-batches of one video have no negatives: use fewer, or accumulate: cached")
        return self


class EvaluateConfig(_Section):
    """How frozen features are judged."""

    labels_per_class: PositiveInt | None = Field(
        None, description="labelled training videos of each class that the judge may learn from; all when empty"
    )
    clips: PositiveInt = Field(10, description="evenly spaced clips averaged for a video")
    crops: PositiveInt = Field(
        1, description="crops of each clip, spread along the frame's longer side; 3 for 10x3 views"
    )
    seeds: PositiveInt = Field(1, description="times that what is random (fine-tuning, SGD probes, draws) is repeated")
    batch_size: PositiveInt = Field(8, description="videos per batch of feature extraction")
    knn_neighbours: PositiveInt = Field(20, description="k of kNN")
    knn_temperature: PositiveFloat = Field(0.07, description="of kNN's similarity-weighted vote")
    recall_at: tuple[PositiveInt, ...] = Field((1, 5, 10, 20, 50), description="k of retrieval's R@k")
    linear_l2: tuple[PositiveFloat, ...] = Field(
        (1e-3, 1e-2, 1e-1),
        min_length=1,
        description="ridge penalties of the linear probe; chosen on training videos",
    )
    finetune_epochs: PositiveInt | None = Field(None, description="epochs of fine-tuning; the protocol's when empty")
    finetune_batch_size: PositiveInt | None = Field(
        None, description="videos a step of fine-tuning; the protocol's when empty"
    )
    finetune_learning_rate: PositiveFloat | None = Field(
        None, description="learning rate of fine-tuning; the protocol's when empty"
    )


class Experiment(_Section):
    """Everything a run does."""

    name: str = Field("experiment", min_length=1, description="name of the experiment, and of its run folder")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="everything random comes from it")
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    contrast: ContrastConfig = ContrastConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


_EVERY_LEVEL = {"spatial": LEVELS, "temporal": LEVELS, "coupled": LEVELS}
_TOP_LEVEL = {task: LEVELS[-1:] for task in _EVERY_LEVEL}
# The method and the ablations that the paper asks about: what each sets in the sections `views` and `contrast`.
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
    """What a preset sets, by section, as `HDC` takes it: `HDC(backbone, **preset("coupled"))`.

    Args:
        name: `hdc` (decoupled: spatial task at P2 and P3, temporal task at P4 and P5, measured weights), `coupled`,
            `spatial` or `temporal` (one task at every level), `hdc-every-level` (both tasks at every level),
            `hdc-uniform` (equal weights), `hdc-top-level` (both tasks at the last stage alone).

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        raise ConfigError(
            f"there is no preset `{name}`."
            + (f" Did you mean `{near[0]}`?" if near else "")
            + f" Known: {', '.join(PRESETS)}."
        )
    return {section: dict(values) for section, values in PRESETS[name].items()}


def load_experiment(
    source: str | Path, overrides: list[str] | None = None, preset_name: str | None = None
) -> Experiment:
    """Read a YAML file, apply a preset, then `section.key=value` overrides, and validate.

    Raises:
        ConfigError: names the file, the key, what was expected, and the nearest valid key.
    """
    path = Path(source)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML.\n{error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines. Received: {type(values).__name__}")
    for section, changes in (preset(preset_name) if preset_name else {}).items():
        for key, value in changes.items():
            _assign(values, [section, key], value, f"preset {preset_name}")
    for override in overrides or []:
        _apply_override(values, override)
    return validate(Experiment, values, str(path))


def validate(model: type[Model], values: Any, where: str) -> Model:
    """Validate `values` as `model`, with every problem in one `ConfigError`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "\n  ".join(_describe(problem, model) for problem in error.errors())
        raise ConfigError(f"{where}:\n  {problems}") from error


def dump_experiment(experiment: Experiment) -> str:
    """The experiment as YAML, every key included."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected section.key=value, as in --set train.epochs=50")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML ({error})") from error
    _assign(values, key.split("."), value, f"--set {override}")


def _assign(values: dict[str, Any], key: list[str], value: Any, where: str) -> None:
    *sections, last = key
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: `{section}` is a value, not a section")
    values[last] = value


def _describe(problem: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _keys(model)
        near = difflib.get_close_matches(key, known, 1, cutoff=0.4) or [
            name for name in known if name.rpartition(".")[2] == location[-1]
        ]
        meant = f" Did you mean `{near[0]}`?" if near else ""
        return f"unknown key `{key}`.{meant} `hdc-keras configs show` lists all keys."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        within = [name for name in _keys(model) if name.startswith(f"{key}.")]
        message = f"is a section of keys: {', '.join(within)}"
    if problem["type"] == "tuple_type":
        message = "expected a list, as in [1, 2]"
    if problem["type"] == "literal_error":
        allowed = re.findall(r"'([^']+)'", problem["ctx"]["expected"])
        near = difflib.get_close_matches(str(problem["input"]), allowed, 1)
        message += f". Did you mean `{near[0]}`?" if near else ""
    received = "" if isinstance(problem["input"], dict) else f" Received: {problem['input']!r}"
    end = "" if message.endswith("?") else "."
    return f"`{key}`: {message[:1].lower()}{message[1:]}{end}{received}" if key else message


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += [prefix + name, *_keys(field.annotation, f"{prefix}{name}.")]
        else:
            keys.append(prefix + name)
    return keys
