"""What pretraining on unlabelled videos is worth when only a few of them have labels.

Command: python benchmarks/few_labels.py --data SET [--data SET ...] [--labels 1 2 5] [--draws 5]
         python benchmarks/few_labels.py --tables-only      (no training: table and figure from finished runs)
Cost:    for each set and draw, one run of `hdc-keras pretrain --config videos-cpu` and, for each number of labels, two
         fine-tunings: about 15 minutes on one core. It can be stopped at any time; finished draws are kept.

Each draw tests on the videos of one fold, whose people or recordings are in neither pretraining nor training. The
network is pretrained on the videos of the other folds without labels. Then it gets labels for 1, 2, 5 ... of them in
each class, drawn at random: a linear probe is fitted to its frozen features, and it is fine-tuned. Beside it, the same
network is trained from scratch on the same labelled videos, for as many steps.

Results go to `studies/few-labels.jsonl`, one line per draw, table and figure to `docs/real-video.md`.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from real_video import CONFIG, divide, name_of, write_manifest
from study import DOCS, STUDIES, Run, Study, command, evaluated, in_parallel, options, write_section

from hdc_keras.data.records import VideoRecord, read_records

STUDY = STUDIES / "few-labels.jsonl"
PAGE = DOCS / "real-video.md"
FIGURE = DOCS / "images" / "few-labels.png"
KEY = ("set", "draw")
FINE_TUNING = "finetune-rspnet"
BATCH_SIZE = 16
# Steps of a fine-tuning, whatever the number of labelled videos, and its learning rate. The rate of the recipe is for
# batches of 32 and R3D-18.
STEPS, LEARNING_RATE = 300, 0.02
WAYS = {
    "pretrained, fine-tuned": (FINE_TUNING, "metrics"),
    "pretrained, frozen": ("linear", "metrics"),
    "from scratch": (FINE_TUNING, "random_weights"),
    "random weights, frozen": ("linear", "random_weights"),
}


def run(
    name: str,
    records: list[VideoRecord],
    draw: int,
    labels: Sequence[int],
    steps: int,
    study: Study,
    runs: Path,
    threads: int,
) -> None:
    """Pretrain without one fold, evaluate with few labels, and add the result to the study."""
    folds = divide(records, 5, seed=draw // 5)
    held_out = [records[place] for place in folds[draw % 5]]
    directory = runs / f"{name}-{draw}"
    manifest = directory.with_suffix(".csv")
    write_manifest(manifest, records, held_out)
    log = directory.with_suffix(".log")
    settings = [f"data.path={manifest.resolve()}", f"seed={draw}", f"train.steps={steps}", "train.knn_every=0"]
    command(log, threads, "pretrain", "--config", CONFIG, *options("--set", settings), "--run", directory)
    classes = len({record.label for record in records})
    found: Run = {}
    for count in labels:
        epochs = math.ceil(STEPS / max(1, count * classes // BATCH_SIZE))
        few = [f"evaluate.labels_per_class={count}", f"seed={draw}", f"evaluate.finetune_epochs={epochs}"]
        few += [f"evaluate.finetune_batch_size={BATCH_SIZE}", f"evaluate.finetune_learning_rate={LEARNING_RATE}"]
        out = directory / f"few-{count}"
        command(
            log,
            threads,
            "evaluate",
            "--run",
            directory,
            "--out",
            out,
            *options("--set", few),
            *options("--protocol", ["linear", FINE_TUNING]),
        )
        found[str(count)] = {}
        for way, (protocol, network) in WAYS.items():
            result, _ = evaluated(out, protocol)
            (column,) = result[network]
            source = "features" if protocol == "linear" else "fine-tuned"
            found[str(count)][way] = round(result[network][column][source]["top1"], 4)
    study.add({"set": name, "draw": draw, "steps": steps, "classes": classes, "videos": len(held_out), "top1": found})


def write_docs(study: Study) -> str:
    """Write the table and the figure to the docs, and return the table."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    by_set: dict[str, list[Run]] = {}
    for line in study.runs():
        by_set.setdefault(line["set"], []).append(line)
    parts = [
        "Share of test videos classified correctly, mean over draws (number of draws), and the difference between the "
        "pretrained network, fine-tuned, and the one trained from scratch, with a 95 % interval over draws (bootstrap)."
    ]
    figure, axes = pyplot.subplots(
        1, len(by_set), figsize=(4.2 * len(by_set), 3.4), squeeze=False, layout="constrained"
    )
    for axis, (name, lines) in zip(axes[0], by_set.items(), strict=True):
        counts = list(lines[0]["top1"])
        rows = []
        for count in counts:
            values = {
                way: np.array([line["top1"][count][way] for line in lines if count in line["top1"]]) for way in WAYS
            }
            gap = values["pretrained, fine-tuned"] - values["from scratch"]
            draws = np.random.default_rng(0).choice(gap, (10_000, len(gap))).mean(axis=1)
            low, high = np.quantile(draws, [0.025, 0.975])
            cells = [f"{value.mean():.3f}" for value in values.values()]
            rows.append(f"| {count} | {' | '.join(cells)} | {gap.mean():+.3f} ({low:+.3f} to {high:+.3f}) |")
        for way, style in zip(WAYS, ("o-", "o--", "s-", "s--"), strict=True):
            means = [np.mean([line["top1"][count][way] for line in lines]) for count in counts]
            axis.plot(counts, means, style, color="#1f6f8b" if "pretrained" in way else "#9aa5ab", label=way)
        axis.axhline(1 / lines[0]["classes"], color="black", linewidth=0.8, linestyle=":")
        axis.set(title=name, ylim=(0, 1), xlabel="labelled videos of each class", ylabel="right on new people")
        axis.spines[["top", "right"]].set_visible(False)
        header = " | ".join(WAYS)
        parts.append(
            "\n".join(
                [
                    f"### {name} with few labels ({len(lines)} draws)",
                    "",
                    f"| labels per class | {header} | fine-tuned minus from scratch |",
                    f"|---|{'---|' * len(WAYS)}---|",
                    *rows,
                ]
            )
        )
    axes[0][0].legend(fontsize=8)
    figure.savefig(FIGURE, dpi=130)
    pyplot.close(figure)
    text = "\n\n".join(parts)
    write_section(PAGE, study.name, text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", help="labelled folder or CSV manifest; repeatable")
    parser.add_argument("--labels", nargs="+", type=int, default=[1, 2, 5], help="labelled videos per class")
    parser.add_argument("--draws", type=int, default=5, help="draws of test fold and labelled videos")
    parser.add_argument("--steps", type=int, default=1000, help="steps of pretraining")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="draws at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/few-labels"), help="folder for unfinished runs")
    parser.add_argument(
        "--tables-only", action="store_true", help="table and figure of the finished draws; no training"
    )
    arguments = parser.parse_args()
    study = Study(STUDY, KEY)
    if not arguments.tables_only:
        if not arguments.data:
            parser.error("--data is required, except with --tables-only")
        arguments.runs.mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        sets = {name_of(path): read_records(path) for path in arguments.data}

        def job(item: tuple[int, str]) -> None:
            draw, name = item
            if not study.has(name, draw):
                run(name, sets[name], draw, arguments.labels, arguments.steps, study, arguments.runs, threads)

        for item in in_parallel(
            job, [(draw, name) for draw in range(arguments.draws) for name in sets], arguments.jobs
        ):
            print("done:", *item, flush=True)
    print(write_docs(study))


if __name__ == "__main__":
    main()
