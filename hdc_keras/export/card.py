"""The model card: what an exported network is, where it is from and how it is used. Facts first, then their text."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hdc_keras.config import Experiment
from hdc_keras.export.format import Format, Outputs
from hdc_keras.files import digest
from hdc_keras.model import HDC

Facts = dict[str, Any]

_NO_LICENCE = (
    "Not stated. The package hdc-keras is Apache-2.0; these weights are not part of it. What they may be used for "
    "depends on the videos that they were pretrained on, so whoever trained them decides (`hdc-keras export --licence "
    "TEXT`)."
)
# How a source was chosen, not how well it did.
_NO_SCORES = ("l2",)


@dataclass(frozen=True)
class Origin:
    """Where the weights are from.

    Attributes:
        checkpoint: their file; `None` where they never were in one.
        results: what evaluations said of them, as in a run's `results/*.json`.
        licence: what they may be used for.
    """

    checkpoint: Path | None
    results: Sequence[Mapping[str, Any]]
    licence: str | None


@dataclass
class Trial:
    """How what was written was compared with the Keras model.

    Attributes:
        tolerance: difference that was allowed.
        difference: greatest that was found.
        shapes: of the batches that were tried.
        outputs: shape of each output by name, without the batch, of the first of them.
    """

    tolerance: float
    difference: float = 0.0
    shapes: list[list[int]] = field(default_factory=list)
    outputs: dict[str, list[int]] = field(default_factory=dict)

    def add(self, batch: np.ndarray, outputs: Outputs, difference: float) -> None:
        """Note a batch that agreed."""
        self.difference = max(self.difference, difference)
        self.shapes.append(list(batch.shape))
        self.outputs = self.outputs or {name: list(value.shape[1:]) for name, value in outputs.items()}


def describe(
    model: HDC,
    experiment: Experiment,
    format: Format,
    file_name: str,
    size: int,
    trial: Trial,
    origin: Origin,
) -> Facts:
    """All that the card says, as JSON takes it.

    Args:
        model: the network.
        experiment: how it was pretrained.
        format: its format.
        file_name: of the file or folder.
        size: its bytes.
        trial: how it was compared.
        origin: where its weights are from.
    """
    weights = digest(origin.checkpoint) if origin.checkpoint else None
    return {
        "name": experiment.name,
        "format": format.name,
        "file": file_name,
        "bytes": size,
        "summary": format.summary,
        "script": format.script.replace("FILE", file_name),
        "backbone": model.backbone.name,
        "levels": list(model.contrast_config.used_levels),
        "tasks": list(model.objective.tasks),
        "input": _input(format),
        "outputs": {name: {"shape": shape, "what": _meaning(name, shape)} for name, shape in trial.outputs.items()},
        "resized_to": list(experiment.data.decode_size),
        "cropped_to": model.views_config.size,
        "pretrained_on": {
            "dataset": Path(experiment.data.path).name if experiment.data.path else "moving-shapes",
            "frames": experiment.data.frames,
            "stride": experiment.data.stride,
        },
        "epochs": experiment.train.epochs,
        "steps_taken": model.steps_taken,
        "checkpoint": origin.checkpoint.name if origin.checkpoint else None,
        "weights_sha256": weights,
        "licence": origin.licence,
        "versions": {"python": platform.python_version(), **_versions("hdc-keras", "keras", *format.packages)},
        "check": {"tolerance": trial.tolerance, "greatest_difference": trial.difference, "inputs": trial.shapes},
        "results": [row for result in origin.results for row in _result_rows(result, weights)],
        "config": _config(experiment),
    }


def _config(experiment: Experiment) -> dict[str, Any]:
    """The experiment's config; where files lie on this machine is nobody's business."""
    config = experiment.model_dump(mode="json")
    for section, key in (("data", "path"), ("data", "annotations"), ("model", "weights"), ("model", "init_from")):
        if config[section][key]:
            config[section][key] = Path(config[section][key]).name
    return config


def render(facts: Facts) -> str:
    """The facts as Markdown."""
    return "\n\n".join(part for part in _parts(facts) if part) + "\n"


def _input(format: Format) -> dict[str, Any]:
    shape = ["batch", "time", "height", "width", 3]
    if format.takes_video:
        return {"name": "video", "dtype": "uint8", "shape": shape}
    return {"name": "clips", "dtype": "float32", "shape": shape}


def _versions(*packages: str) -> dict[str, str]:
    """Of those that are installed under that name; TensorFlow has several."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _meaning(output: str, shape: Sequence[int]) -> str:
    if output == "embedding":
        return "the embeddings of each task at its deepest level, joined; unit length"
    level, _, task = output.partition("_")
    if task:
        return f"embedding of the {task} task at stage {level}; unit length"
    if len(shape) > 1:
        return f"feature map of stage {level}: time, height, width, channels"
    return f"features of stage {level}, averaged over time and space"


def _result_rows(result: Mapping[str, Any], weights: str | None) -> Iterator[Facts]:
    """A row for each label column and source of one result."""
    for column, sources in result["metrics"].items():
        for source, metrics in sources.items():
            random = result.get("random_weights", {}).get(column, {}).get(source, {})
            yield {
                "protocol": result["protocol"] + (" (reduced)" if result.get("reduced") else ""),
                "dataset": Path(str(result["dataset"])).stem,
                "label": column,
                "from": source,
                "metrics": {name: value for name, value in metrics.items() if name not in _NO_SCORES},
                "random_weights": {name: value for name, value in random.items() if name not in _NO_SCORES},
                "deviation": result.get("deviation", {}).get("metrics", {}).get(column, {}).get(source, {}),
                "chance": result.get("chance", {}).get(column),
                "test_videos": result.get("split", {}).get("test"),
                "of_these_weights": result.get("weights_sha256") == weights,
            }


def _parts(facts: Facts) -> Iterator[str]:
    yield f"# {facts['name']}: {facts['backbone']} pretrained with HDC"
    yield (
        "A video network pretrained without labels by hierarchically decoupled spatial-temporal contrast (Zhang and "
        "Crandall, WACV 2022, arXiv 2011.11261), with the package hdc-keras. It gives features and embeddings of "
        f"clips; it names no classes. {facts['summary']}"
    )
    yield "## Use\n\n```python\n" + facts["script"] + "```"
    yield "## Input\n\n" + _input_text(facts)
    yield "## Outputs\n\nfloat32, by name:\n\n" + _table(
        ("name", "shape", "what"),
        [(f"`{name}`", _shape(["batch", *found["shape"]]), found["what"]) for name, found in facts["outputs"].items()],
    )
    yield "## Pretraining\n\n" + _pretraining(facts)
    if facts["results"]:
        yield "## Results\n\n" + _results(facts)
    yield f"## Licence\n\n{facts['licence'] or _NO_LICENCE}"
    yield "## Check\n\n" + _check(facts)
    config = yaml.safe_dump(facts["config"], sort_keys=False)
    yield f"<details>\n<summary>The whole configuration of the run</summary>\n\n```yaml\n{config}```\n\n</details>"


def _input_text(facts: Facts) -> str:
    taken, (height, width), size = facts["input"], facts["resized_to"], facts["cropped_to"]
    frames, stride = facts["pretrained_on"]["frames"], facts["pretrained_on"]["stride"]
    picked = "consecutive frames" if stride == 1 else f"one of every {stride} frames"
    seen = (
        f"Pretraining saw clips of {frames} frames, {picked} of the video; other lengths work, but for very short ones."
    )
    text = f"`{taken['name']}`: {taken['dtype']}, {_shape(taken['shape'])}, RGB. Any batch, length, height and width. "
    if taken["dtype"] == "uint8":
        return (
            text + "Give frames as they were decoded. Inside, each is resized to "
            f"{height} x {width} pixels (height x width; antialiased, bilinear, whatever its aspect), the middle "
            f"{size} x {size} pixels are cropped, and pixels are normalised. {seen}"
        )
    return (
        text + "Pixels are in [0, 1]; the network normalises them, and resizes nothing. Its pretraining had frames "
        f"resized to {height} x {width} pixels (height x width; antialiased, bilinear), and crops of {size} x {size}. "
        f"{seen}"
    )


def _pretraining(facts: Facts) -> str:
    seen, size = facts["pretrained_on"], facts["cropped_to"]
    rows = [
        ("backbone", facts["backbone"]),
        ("data set", seen["dataset"]),
        ("clips", f"{seen['frames']} frames, stride {seen['stride']}, {size} x {size} pixels"),
        ("tasks", ", ".join(facts["tasks"])),
        ("levels", ", ".join(facts["levels"])),
        ("epochs", f"{facts['epochs']} ({facts['steps_taken']} steps taken)"),
        ("videos a step", facts["config"]["train"]["batch_size"]),
        ("checkpoint", facts["checkpoint"] or "none: exported from memory"),
        ("its SHA-256", facts["weights_sha256"] or "–"),
    ]
    return _table(("", ""), rows)


def _results(facts: Facts) -> str:
    rows = [
        (
            row["protocol"],
            row["dataset"],
            row["label"],
            row["from"],
            _scores(row["metrics"], row["deviation"]),
            _scores(row["random_weights"], {}),
            "–" if row["chance"] is None else f"{row['chance']:.3f}",
            row["test_videos"] or "–",
            "yes" if row["of_these_weights"] else "no",
        )
        for row in facts["results"]
    ]
    titles = (
        "protocol",
        "data set",
        "label",
        "from",
        "result",
        "random weights",
        "chance",
        "test videos",
        "of these weights",
    )
    explained = (
        "By `hdc-keras evaluate`, as shares of the test videos; beside them the same network with random weights, and "
        "what always naming the most frequent class would give."
    )
    return f"{explained}\n\n" + _table(titles, rows)


def _scores(metrics: Mapping[str, float], deviation: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.3f}" + (f" ± {deviation[name]:.3f}" if name in deviation else "")
        for name, value in metrics.items()
    )


def _check(facts: Facts) -> str:
    check, versions = facts["check"], facts["versions"]
    inputs = " and ".join(_shape(shape) for shape in check["inputs"])
    return (
        f"After it was written, this {facts['format']} file ({facts['bytes']:,} bytes) was loaded in its own runtime "
        f"and compared with the Keras model on inputs of {inputs}. Greatest difference: "
        f"{check['greatest_difference']:.2g} (allowed: {check['tolerance']:g}; of outputs beyond 1, as a share of the "
        "greatest number). With " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
    )


def _shape(lengths: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, lengths)) + ")"


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
