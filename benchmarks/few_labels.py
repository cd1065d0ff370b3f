"""What pretraining is worth when only a few videos have labels: a part of the study in `real_video.py`.

This file is imported by `real_video.py`. It has no command.

A network that was pretrained without labels gets labels for 1, 2, 5 ... or all videos of each class, drawn at random
from its training videos: a linear probe is fitted to its frozen features, and it is fine-tuned. Beside it, the same
network with random weights gets the same: fine-tuning it is training from scratch on the same videos for as many steps.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from study import Run, command, evaluated, mean_right, options, paired_difference

PROTOCOL = "finetune-rspnet"
BATCH_SIZE = 16
# Steps of a fine-tuning, whatever the number of labelled videos, and its learning rate. The rate of the recipe is for
# batches of 32 and R3D-18.
STEPS, LEARNING_RATE = 300, 0.02
TUNED, SCRATCH = "pretrained, fine-tuned", "from scratch"
# The protocol and the network of a result, and the source of its figures.
WAYS = {
    TUNED: (PROTOCOL, "metrics", "fine-tuned"),
    "pretrained, frozen": ("linear", "metrics", "features"),
    SCRATCH: (PROTOCOL, "random_weights", "fine-tuned"),
    "random weights, frozen": ("linear", "random_weights", "features"),
}
# The count of labels that stands for all of them.
ALL = "all"
Answers = dict[int, dict[str, int]]


def label_count(text: str) -> str:
    """A number of labelled videos of each class, or "all". Raises `ValueError` for anything else."""
    if text != ALL and int(text) < 1:
        raise ValueError(text)
    return text


def measure(
    directory: Path, manifest: Path, counts: Sequence[str], classes: int, seed: int, threads: int
) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Evaluate a run with few labels.

    Args:
        directory: the run.
        manifest: the labelled videos, of which the test split is never trained on.
        counts: numbers of labelled videos of each class, or "all".
        classes: number of classes.
        seed: seed of the draw of labelled videos.
        threads: number of TensorFlow threads.

    Returns:
        The rows by test video of each count and way.
    """
    found: dict[str, dict[str, list[dict[str, str]]]] = {}
    with manifest.open(newline="") as file:
        training_videos = sum(row["split"] == "train" for row in csv.DictReader(file))
    for count in counts:
        videos = training_videos if count == ALL else min(int(count) * classes, training_videos)
        epochs = math.ceil(STEPS / max(1, videos // BATCH_SIZE))
        settings = [f"seed={seed}", f"evaluate.finetune_epochs={epochs}"]
        settings += [f"evaluate.finetune_batch_size={BATCH_SIZE}", f"evaluate.finetune_learning_rate={LEARNING_RATE}"]
        if count != ALL:
            settings.append(f"evaluate.labels_per_class={count}")
        out = directory / f"{manifest.stem}-few-{count}"
        arguments = [*options("--set", settings), *options("--protocol", ["linear", PROTOCOL]), "--out", out]
        command(directory.with_suffix(".log"), threads, "evaluate", "--run", directory, "--data", manifest, *arguments)
        found[count] = {}
        for way, (protocol, network, source) in WAYS.items():
            _, rows = evaluated(out, protocol)
            found[count][way] = [row for row in rows if (row["network"], row["source"]) == (network, source)]
    return found


def answers_of(lines: Sequence[Run], data: str) -> dict[str, dict[str, Answers]]:
    """By count and way, which test videos were classified correctly in each seed, from the lines of a study.

    Only seeds count in which every fold is finished.
    """
    measured = [(line, counts[data]) for line in lines if data in (counts := line.get("few_labels", {}))]
    found: dict[str, dict[str, Answers]] = {}
    for count in sorted({count for _, counts in measured for count in counts}, key=_order):
        with_count = [(line, counts[count]) for line, counts in measured if count in counts]
        for seed in sorted({line["seed"] for line, _ in with_count}):
            folds = [ways for line, ways in with_count if line["seed"] == seed]
            if len(folds) < next(line["folds"] for line, _ in with_count if line["seed"] == seed):
                continue
            for way in WAYS:
                right = {video: answer for ways in folds for video, answer in ways[way].items()}
                found.setdefault(count, {}).setdefault(way, {})[seed] = right
    return found


def _order(count: str) -> float:
    return math.inf if count == ALL else int(count)


def table(lines: Sequence[Run], data: str, group_of: Mapping[str, int]) -> str:
    """The table of one set."""
    rows = []
    found = answers_of(lines, data)
    for count, ways in found.items():
        gap, low, high = paired_difference(ways[TUNED], ways[SCRATCH], group_of)
        cells = [f"{mean_right(ways[way]):.3f}" for way in WAYS]
        rows.append(f"| {count} ({len(ways[TUNED])}) | {' | '.join(cells)} | {gap:+.3f} ({low:+.3f} to {high:+.3f}) |")
    return "\n".join(
        [
            f"### {data} with few labels",
            "",
            "The labelled videos are drawn anew for each fold.",
            "",
            f"| labels per class (seeds) | {' | '.join(WAYS)} | fine-tuned minus from scratch |",
            f"|---|{'---|' * len(WAYS)}---|",
            *rows,
        ]
    )


def draw(lines: Sequence[Run], sets: Mapping[str, Run], file: Path) -> None:
    """Draw the share of right answers against the number of labels, for each set."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(sets), figsize=(4.2 * len(sets), 3.4), squeeze=False, layout="constrained")
    for axis, (data, about) in zip(axes[0], sets.items(), strict=True):
        found = answers_of(lines, data)
        for way, style in zip(WAYS, ("o-", "o--", "s-", "s--"), strict=True):
            shares = [mean_right(ways[way]) for ways in found.values()]
            axis.plot(list(found), shares, style, color="#1f6f8b" if "pretrained" in way else "#9aa5ab", label=way)
        axis.axhline(1 / about["classes"], color="black", linewidth=0.8, linestyle=":")
        axis.set(title=data, ylim=(0, 1), xlabel="labelled videos of each class", ylabel="share of videos right")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
