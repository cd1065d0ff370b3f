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
    """The experiment of `--config`, after `--preset`, `--data` and `--init-from`, `--set` and `--smoke` in this order.

    Raises:
        ConfigError: the config, the preset or an override is wrong.
    """
    paths = {"data.path": absolute(data)} if data is not None else {}
    if init_from:
        paths["model.init_from"] = str(Path(init_from).resolve())
    experiment = load_experiment(find_config(config), overrides, preset, paths)
    if preset:
        experiment = experiment.model_copy(update={"name": f"{experiment.name}-{preset}"})
    return shrunk(experiment) if smoke else experiment


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


def shrunk(experiment: Experiment) -> Experiment:
    """Shrink an experiment to about a minute. Every stage runs, but the resulting figures mean nothing."""
    height, width = experiment.data.decode_size
    size = min(32, experiment.views.size)
    scale = size / experiment.views.size
    sections = {
        "data": {
            "frames": min(8, experiment.data.frames),
            "decode_size": (round(height * scale), round(width * scale)),
            "shapes_per_pair": (1, 1),
            "limit": 16,
        },
        "views": {"size": size},
        "train": {"epochs": 2, "batch_size": min(4, experiment.train.batch_size), "knn_every": 1},
        "evaluate": {"clips": 2},
    }
    return experiment.model_copy(
        update={name: getattr(experiment, name).model_copy(update=changes) for name, changes in sections.items()}
        | {"name": f"{experiment.name}-smoke"}
    )
