"""The model card of an exported network.

`describe` gathers its facts, which are also saved as JSON; `render` writes them as Markdown.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hdc_keras.classification.network import SCORES
from hdc_keras.config import Experiment
from hdc_keras.export.format import Format, Outputs
from hdc_keras.export.networks import Model, Network, classes_of, has_own_layers
from hdc_keras.model import HDC
from hdc_keras.results.card_tables import markdown_table, result_rows, results_table

Facts = dict[str, Any]

_NO_LICENCE = (
    "Not stated. The hdc-keras package is Apache-2.0, but its licence does not cover these weights. What they may be "
    "used for depends on the videos that they were pretrained on, so whoever trained them must decide (`hdc-keras "
    "export --licence TEXT`)."
)
# What the card says of a classifier: names in its `classifier.json`.
_OF_CLASSIFIER = (
    "column",
    "chosen",
    "pretrained",
    "checkpoint",
    "weights_sha256",
    "videos",
    "test",
    "seen_in_pretraining",
)


@dataclass(frozen=True)
class Origin:
    """Where the weights come from.

    Attributes:
        checkpoint: name of the checkpoint file; `None` for a model that was never saved.
        weights_sha256: SHA-256 of that file.
        results: evaluation results, as in a run's `results/*.json`.
        licence: the licence of the weights.
        classifier: what is known about a classifier, as in its `classifier.json`.
    """

    checkpoint: str | None
    weights_sha256: str | None
    results: Sequence[Mapping[str, Any]]
    licence: str | None
    classifier: Mapping[str, Any] | None = None


@dataclass
class Trial:
    """How the export was compared with the Keras model.

    Attributes:
        tolerance: the largest difference allowed.
        difference: the largest difference found.
        shapes: shapes of the batches that were compared.
        outputs: shape of each output by name for the first batch, without the batch axis.
    """

    tolerance: float
    difference: float = 0.0
    shapes: list[list[int]] = field(default_factory=list)
    outputs: dict[str, list[int]] = field(default_factory=dict)

    def add(self, batch: np.ndarray, outputs: Outputs, difference: float) -> None:
        """Record a batch on which both agree."""
        self.difference = max(self.difference, difference)
        self.shapes.append(list(batch.shape))
        self.outputs = self.outputs or {name: list(value.shape[1:]) for name, value in outputs.items()}


def describe(
    model: Model,
    network: Network,
    experiment: Experiment,
    format: Format,
    file_name: str,
    size: int,
    trial: Trial,
    origin: Origin,
) -> Facts:
    """Gather the facts of the model card, as values that JSON can hold.

    Args:
        model: the exported model.
        network: the network that was made of it.
        experiment: how it was pretrained.
        format: the export format.
        file_name: name of the exported file or folder.
        size: its size in bytes.
        trial: how it was compared with the Keras model.
        origin: where the weights come from.
    """
    return {
        "name": (origin.classifier or {}).get("name", experiment.name),
        "format": format.name,
        "file": file_name,
        "bytes": size,
        "summary": f"{format.summary} {_layers_text(network)}" if not format.takes_video else format.summary,
        "script": _script(network, format).replace("FILE", file_name),
        "backbone": model.backbone.name,
        "levels": list(network.levels),
        "tasks": list(model.objective.tasks) if isinstance(model, HDC) else [],
        "classes": classes_of(network),
        "classifier": {name: value for name, value in (origin.classifier or {}).items() if name in _OF_CLASSIFIER},
        "input": _input(format),
        "outputs": {name: {"shape": shape, "what": _meaning_of(name, shape)} for name, shape in trial.outputs.items()},
        "least_frames": {"value": format.least_frames(network), "refused_below": format.refuses_short_clips},
        "clip_multiples": list(network.backbone.clip_multiples),
        "resized_to": list(experiment.data.decode_size),
        "cropped_to": network.view_size,
        "focus": network.focus,
        "steady": network.steady,
        "pretrained_on": {
            "dataset": Path(experiment.data.path).name if experiment.data.path else "moving-shapes",
            "frames": experiment.data.frames,
            "stride": experiment.data.stride,
            "fps": experiment.data.fps,
        },
        "epochs": experiment.train.epochs,
        "steps": experiment.train.steps,
        "steps_taken": model.steps_taken if isinstance(model, HDC) else None,
        "checkpoint": origin.checkpoint,
        "weights_sha256": origin.weights_sha256,
        "weights": _weights(model),
        "licence": origin.licence,
        "versions": {"python": platform.python_version(), **_versions("hdc-keras", "keras", *format.packages)},
        "check": {"tolerance": trial.tolerance, "greatest_difference": trial.difference, "inputs": trial.shapes},
        "results": [row for result in origin.results for row in result_rows(result, origin.weights_sha256)],
        "config": _config(experiment),
    }


def _weights(model: Model) -> str:
    uses_averages = isinstance(model, HDC) and model.uses_averages
    return f"moving average (momentum {model.ema:g})" if uses_averages else "raw"


def _config(experiment: Experiment) -> dict[str, Any]:
    """The experiment's config, with file names in place of full paths, so that the card reveals no local folders."""
    config = experiment.model_dump(mode="json")
    for section, key in (("data", "path"), ("data", "annotations"), ("model", "weights"), ("model", "init_from")):
        if config[section][key]:
            config[section][key] = Path(config[section][key]).name
    return config


def render(facts: Facts) -> str:
    """Write the facts as a Markdown model card."""
    return "\n\n".join(_paragraphs(facts)) + "\n"


def _script(network: Network, format: Format) -> str:
    script = format.class_script if classes_of(network) else format.script
    needs_package = not format.takes_video and has_own_layers(network)
    return "import hdc_keras.backbones  # the network's layers\n" + script if needs_package else script


def _layers_text(network: Network) -> str:
    if has_own_layers(network):
        return "It contains layers of hdc-keras, which must be installed to load it."
    return "It contains only layers that are part of Keras."


def _input(format: Format) -> dict[str, Any]:
    shape = ["batch", "time", "height", "width", 3]
    if format.takes_video:
        return {"name": "video", "dtype": "uint8", "shape": shape}
    return {"name": "clips", "dtype": "float32", "shape": shape}


def _versions(*packages: str) -> dict[str, str]:
    """Versions of the packages that are installed under these names; TensorFlow is distributed under several."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _meaning_of(output: str, shape: Sequence[int]) -> str:
    if output == SCORES:
        return "score of each class; they add up to 1"
    if output == "embedding":
        return "each task's embedding at its deepest level, concatenated; unit length"
    level, _, task = output.partition("_")
    if task:
        return f"{task} embedding of stage {level}; unit length"
    if len(shape) > 1:
        return f"feature map of stage {level} (time, height, width, channels)"
    return f"features of stage {level}, averaged over time and space"


def _paragraphs(facts: Facts) -> Iterator[str]:
    yield _title(facts)
    yield f"{_introduction(facts)} {facts['summary']}"
    yield "## Use\n\n```python\n" + facts["script"] + "```"
    yield "## Input\n\n" + _input_text(facts)
    yield "## Outputs\n\nFloat32 arrays by name:\n\n" + markdown_table(
        ("name", "shape", "meaning"),
        [(f"`{name}`", _shape(["batch", *found["shape"]]), found["what"]) for name, found in facts["outputs"].items()],
    )
    if facts["classes"]:
        yield f"## Classes\n\nIn the order of the scores: {', '.join(f'`{name}`' for name in facts['classes'])}."
    if facts["classifier"]:
        yield "## Score\n\n" + _score(facts)
    yield "## Network\n\n" + _network(facts) if facts["classes"] else "## Pretraining\n\n" + _pretraining(facts)
    if facts["results"]:
        yield "## Results\n\n" + results_table(facts["results"])
    yield f"## Licence\n\n{facts['licence'] or _NO_LICENCE}"
    yield "## Check\n\n" + _check(facts)
    config = yaml.safe_dump(facts["config"], sort_keys=False)
    yield f"<details>\n<summary>Full configuration of the run</summary>\n\n```yaml\n{config}```\n\n</details>"


def _is_pretrained(facts: Facts) -> bool:
    return bool(facts["classifier"].get("pretrained", True)) if facts["classifier"] else True


def _title(facts: Facts) -> str:
    if not facts["classes"]:
        return f"# {facts['name']}: {facts['backbone']} pretrained with HDC"
    how = " pretrained with HDC" if _is_pretrained(facts) else ""
    return f"# {facts['name']}: a classifier of {len(facts['classes'])} classes, {facts['backbone']}{how}"


def _introduction(facts: Facts) -> str:
    method = (
        "pretrained without labels by Hierarchically Decoupled Spatial-Temporal Contrast (Zhang and Crandall, WACV "
        "2022, arXiv 2011.11261) with the hdc-keras package"
    )
    if not facts["classes"]:
        made = "features and embeddings" if "embedding" in facts["outputs"] else "feature maps"
        return f"A video network, {method}. It turns video clips into {made} and has no classifier."
    before = f", {method}," if _is_pretrained(facts) else ""
    how = {"frozen": "a linear layer was fitted to its frozen features", "whole": "the whole network was trained"}
    chosen = how.get(facts["classifier"].get("chosen", ""), "it was trained")
    return f"A video network{before} that gives each class of a video clip a score. With labelled videos, {chosen}."


def _score(facts: Facts) -> str:
    found = facts["classifier"]
    test, videos = found["test"], found["videos"]
    share, low, high, chance, mean = (
        f"{100 * value:.1f}" for value in (test["top1"], *test["interval"], test["chance"], test["mean_class_accuracy"])
    )
    seen = found["seen_in_pretraining"]
    text = (
        f"{share} % of {test['videos']} test videos in {test['groups']} groups are right (95 % interval {low} to "
        f"{high} %; always the most frequent class: {chance} %; mean over classes {mean} %). A video's scores are the "
        f"means over {test['clips']} evenly spaced clips with {test['crops']} crops each; of a single clip, expect "
        f"less. The label is `{found['column']}`. It was made from "
        f"{videos['training']['videos'] + videos['validation']['videos']} other labelled videos."
    )
    if seen and seen["test_videos"]:
        text += f" {seen['test_videos']} of the test videos were in pretraining, without labels."
    return text


def _input_text(facts: Facts) -> str:
    input_facts, (height, width), size = facts["input"], facts["resized_to"], facts["cropped_to"]
    frames, stride = facts["pretrained_on"]["frames"], facts["pretrained_on"]["stride"]
    spacing = "consecutive frames" if stride == 1 else f"one in every {stride} frames"
    spacing += " of the video"
    if fps := facts["pretrained_on"]["fps"]:
        spacing = f"{fps / stride:g} frames a second"
    least = facts["least_frames"]
    shorter = "is refused" if least["refused_below"] else "gives empty or non-finite outputs, so check the length first"
    training = "Training" if facts["classes"] else "Pretraining"
    lengths = f"Other lengths of {least['value']} or more frames work; a shorter clip {shorter}."
    if (multiple := facts["clip_multiples"][0]) > 1:
        lengths = f"Other multiples of {multiple} frames work; any other length is refused."
    clips = f"{training} used clips of {frames} frames, {spacing}. {lengths}"
    text = (
        f"`{input_facts['name']}`: {input_facts['dtype']}, {_shape(input_facts['shape'])}, RGB. Any batch size, "
        "length, height and width"
    )
    _, *sides = facts["clip_multiples"]
    if input_facts["dtype"] != "uint8" and max(sides) > 1:  # clips, which the model does not resize
        text += f" (height and width in multiples of {sides[0]} and {sides[1]})"
    text += ". "
    crop = f"crops the middle {size} x {size}"
    cropped = f" and used crops of {size} x {size} pixels"
    if facts["focus"]:
        square = f"a square round what moves ({facts['focus']:g} of the shorter side)"
        crop = f"crops {square}, resizes it to {size} x {size}"
        cropped = f", cropped them to {square}, and resized this to {size} x {size} pixels"
    if facts["steady"]:
        crop = f"takes the camera's motion out, {crop}"
        cropped = f", took the camera's motion out{cropped}"
    if input_facts["dtype"] == "uint8":
        return (
            text + "Pass decoded frames without any preprocessing. The model resizes each frame to "
            f"{height} x {width} pixels (height x width; antialiased bilinear, ignoring the aspect ratio), {crop} "
            f"pixels, and normalises pixel values. {clips}"
        )
    return (
        text + "Pixels must be in [0, 1]. The network normalises them, but does not resize: "
        f"{training.lower()} resized frames to {height} x {width} pixels (height x width; antialiased "
        f"bilinear){cropped}. {clips}"
    )


def _pretraining(facts: Facts) -> str:
    data, size = facts["pretrained_on"], facts["cropped_to"]
    rows = [
        ("backbone", facts["backbone"]),
        ("data set", data["dataset"]),
        ("clips", f"{data['frames']} frames, stride {data['stride']}, {size} x {size} pixels"),
        ("tasks", ", ".join(facts["tasks"])),
        ("levels", ", ".join(facts["levels"])),
        ("length of the run", f"{facts['steps']} steps" if facts["steps"] else f"{facts['epochs']} epochs"),
        ("steps taken", facts["steps_taken"]),
        ("videos per step", facts["config"]["train"]["batch_size"]),
        ("checkpoint", facts["checkpoint"] or "none (exported from memory)"),
        ("SHA-256 of the checkpoint", facts["weights_sha256"] or "–"),
        ("weights", facts["weights"]),
    ]
    return markdown_table(("", ""), rows)


def _pretrained_weights(found: Facts) -> str:
    if not found["pretrained"]:
        return "none: it was trained from random weights"
    return f"{found['checkpoint']}, SHA-256 {found['weights_sha256']}"


def _network(facts: Facts) -> str:
    """The network of a classifier."""
    data, size, found = facts["pretrained_on"], facts["cropped_to"], facts["classifier"]
    rows = [
        ("backbone", facts["backbone"]),
        ("features", f"those of {', '.join(facts['levels'])}, averaged over time and space"),
        ("labelled videos", data["dataset"]),
        ("clips", f"{data['frames']} frames, stride {data['stride']}, {size} x {size} pixels"),
        *([("pretrained weights", _pretrained_weights(found))] if found else []),
        ("SHA-256 of the classifier", facts["weights_sha256"] or "–"),
    ]
    return markdown_table(("", ""), rows)


def _check(facts: Facts) -> str:
    check, versions = facts["check"], facts["versions"]
    inputs = " and ".join(_shape(shape) for shape in check["inputs"])
    return (
        f"This {facts['format']} export ({facts['bytes']:,} bytes) was loaded in its own runtime and compared with the "
        f"Keras model on inputs of shape {inputs}. Largest difference: {check['greatest_difference']:.2g} (allowed: "
        f"{check['tolerance']:g}; for outputs with values beyond 1, relative to the largest value). Versions: "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + "."
    )


def _shape(lengths: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, lengths)) + ")"
