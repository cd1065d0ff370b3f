"""Turns the options of a command line into an experiment."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment, load_experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.data.records import VideoSet
from hdc_keras.data.remote import is_remote
from hdc_keras.errors import ConfigError, did_you_mean
from hdc_keras.runs.videos import own_videos

from .console import progress_bar


def named_configs() -> dict[str, Path]:
    """The installed configs by name."""
    folder = Path(str(files("hdc_keras_configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name_or_file: str) -> Path:
    """The YAML file that `--config` selects, by its path or by the name of an installed config.

    Raises:
        ConfigError: no such file, and no config of that name.
    """
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    known = named_configs()
    if name_or_file in known:
        return known[name_or_file]
    raise ConfigError(
        f"--config {name_or_file}: no such file, and no config of that name.{did_you_mean(name_or_file, known)} "
        f"Known: {', '.join(known)}."
    )


def resolve(
    config: str,
    preset: str | None,
    data: str | None,
    overrides: list[str],
    smoke: bool,
    init_from: str | None = None,
) -> Experiment:
    """The experiment of `--config`, after `--preset`, `--data` and `--init-from`, `--smoke`, and `--set` in this order.

    Raises:
        ConfigError: the config, the preset or an override is wrong.
    """
    paths: dict[str, Any] = {"data.path": absolute(data)} if data is not None else {}
    if init_from:
        paths["model.init_from"] = str(Path(init_from).resolve())
    file = find_config(config)
    experiment = load_experiment(file, overrides, preset, paths)
    if smoke:
        # `--set` wins over these values, so the number of videos follows from the batch size that is really used.
        paths |= _small_steps(experiment)
        paths |= _few_videos(load_experiment(file, overrides, preset, paths).train.batch_size)
        experiment = load_experiment(file, overrides, preset, paths)
    name = "-".join([experiment.name, *([preset] if preset else []), *(["smoke"] if smoke else [])])
    return experiment.model_copy(update={"name": name})


def read_videos(experiment: Experiment, resumed_run: Path | None = None) -> VideoSet:
    """The videos of an experiment, or of a run that is resumed, with progress while moving shapes are rendered."""
    with progress_bar() as bar:
        task = bar.add_task("rendering moving shapes", visible=False, note="")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        return own_videos(resumed_run, experiment, show) if resumed_run else load_videos(experiment, show)


def other_videos(data: str | None) -> dict[str, Any]:
    """The values, by key, that replace a run's videos with the videos of `--data`.

    They also reset the keys that describe the run's own set: its layout, its official lists and its limits.
    """
    if data is None:
        return {}
    defaults = {"layout": "auto", "annotations": None, "limit": None, "limit_per_class": None}
    return {f"data.{key}": value for key, value in ({"path": absolute(data)} | defaults).items()}


def absolute(data: str) -> str:
    """The absolute path of `--data`, so that a run can be resumed from any folder. URLs stay unchanged.

    Raises:
        ConfigError: it is empty, which would mean the working folder.
    """
    if not data.strip():
        raise ConfigError("--data: expected a folder, a manifest, a prepared set or a URL. Received an empty text.")
    return data if is_remote(data) else str(Path(data).resolve())


def changes(before: Experiment, after: Experiment) -> list[str]:
    """The values of `after` that differ from `before`, as texts such as "train.epochs 2"."""
    sections = [name for name in Experiment.model_fields if hasattr(getattr(after, name), "model_fields")]
    pairs = [(name, dict(getattr(before, name)), dict(getattr(after, name))) for name in sections]
    seed = [f"seed {after.seed}"] if after.seed != before.seed else []
    return seed + [
        f"{section}.{key} {_shown(value)}"
        for section, old, new in pairs
        for key, value in new.items()
        if value != old[key]
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _small_steps(experiment: Experiment) -> dict[str, Any]:
    """Values by key that shrink the steps and their number. Every stage runs, but the figures mean nothing."""
    height, width = experiment.data.decode_size
    size = min(32, experiment.views.size)
    scale = size / experiment.views.size
    train = experiment.train
    # The smallest batch, of four videos or more, that splits into the micro-batches.
    per_micro_batch = max(-(-4 // train.micro_batches), 2 if train.accumulate == "plain" else 1)
    return {
        "data.frames": min(8, experiment.data.frames),
        "data.decode_size": (round(height * scale), round(width * scale)),
        "views.size": size,
        "train.epochs": min(2, train.epochs or 2),
        "train.batch_size": min(per_micro_batch * train.micro_batches, train.batch_size),
        "train.knn_every": 1,
        "evaluate.clips": min(2, experiment.evaluate.clips),
    }


def _few_videos(batch_size: int) -> dict[str, Any]:
    """Values by key that leave about as many videos as fill a few batches. There are 36 pairs of moving shapes."""
    return {"data.shapes_per_pair": (-(-batch_size // 36), 1), "data.limit": max(16, batch_size)}
