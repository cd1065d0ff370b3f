"""The cards of repositories on the Hugging Face Hub: Markdown with a head that the Hub reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hdc_keras.config import Experiment
from hdc_keras.results.card_tables import result_rows, results_table

_METHOD = (
    "Hierarchically Decoupled Spatial-Temporal Contrast (Zhang and Crandall, WACV 2022, arXiv 2011.11261), with the "
    "hdc-keras package"
)


def run_card(
    experiment: Experiment,
    results: Sequence[Mapping[str, Any]],
    weights_sha256: str,
    repository: str,
    licence: str | None,
) -> str:
    """The card of a pretraining run.

    Args:
        experiment: the experiment, without local paths.
        results: its evaluation results.
        weights_sha256: SHA-256 of the newest checkpoint.
        repository: name of the repository.
        licence: licence of the weights.
    """
    train = experiment.train
    length = f"{train.steps} steps" if train.steps else f"{train.epochs} epochs"
    parts = [
        f"# {experiment.name}: {experiment.model.backbone}, pretrained on video without labels",
        f"A video network, pretrained by {_METHOD}, for {length} on `{_data(experiment)}`.",
        "## Use\n\n```bash\n"
        f"hdc-keras pull {repository} --out runs/pulled\n"
        "hdc-keras embed --run runs/pulled --data path/to/videos --out videos.parquet\n"
        "hdc-keras finetune --run runs/pulled --data path/to/labelled --out models/mine\n```",
        f"## Clips\n\n{_clips(experiment)}",
    ]
    rows = [row for result in results for row in result_rows(result, weights_sha256)]
    if rows:
        parts.append("## Results\n\n" + results_table(rows))
    return _head(licence, "feature-extraction") + "\n\n".join([*parts, _config(experiment)]) + "\n"


def classifier_card(experiment: Experiment, facts: Mapping[str, Any], repository: str, licence: str | None) -> str:
    """The card of a classifier."""
    test = facts["test"]
    low, high = test["interval"]
    origin = f"pretrained by {_METHOD}, then " if facts["pretrained"] else ""
    made = "given a linear layer" if facts["chosen"] == "frozen" else "trained with labels"
    parts = [
        f"# {facts['name']}: a classifier of {len(facts['classes'])} classes of video",
        f"{experiment.model.backbone}, {origin}{made}. It was tested on {test['videos']} videos in {test['groups']} "
        f"groups: {100 * test['top1']:.1f} % are right (95 % interval {100 * low:.1f} to {100 * high:.1f} %; always "
        f"the most frequent class: {100 * test['chance']:.1f} %).",
        f"## Classes\n\n{', '.join(f'`{name}`' for name in facts['classes'])}",
        "## Use\n\n```bash\n"
        f"hdc-keras pull {repository} --out models/pulled\n"
        "hdc-keras predict --model models/pulled --data path/to/videos --out named.csv\n"
        "hdc-keras export --model models/pulled --format onnx\n```",
        f"## Clips\n\n{_clips(experiment)}",
    ]
    return _head(licence, "video-classification") + "\n\n".join([*parts, _config(experiment)]) + "\n"


def export_card(cards: Sequence[str], repository: str, licence: str | None) -> str:
    """The card of exported models, from their own."""
    use = f"Download the files with `hdc-keras pull {repository} --out FOLDER` or `hf download {repository}`."
    return _head(licence, "feature-extraction") + "\n\n".join([*cards, use]) + "\n"


def _head(licence: str | None, task: str) -> str:
    head = {
        "library_name": "keras",
        "pipeline_tag": task,
        "tags": ["video", "self-supervised-learning", "hdc-keras"],
        "license": licence or "other",
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"


def _data(experiment: Experiment) -> str:
    return experiment.data.path or "moving-shapes"


def _clips(experiment: Experiment) -> str:
    data = experiment.data
    height, width = data.decode_size
    rate = f" at {data.fps:g} frames per second" if data.fps else ""
    return (
        f"{data.frames} frames with stride {data.stride}{rate}, resized to {height} x {width} pixels and cropped to "
        f"{experiment.views.size} x {experiment.views.size}."
    )


def _config(experiment: Experiment) -> str:
    config = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
    return f"<details>\n<summary>Configuration</summary>\n\n```yaml\n{config}```\n\n</details>"
