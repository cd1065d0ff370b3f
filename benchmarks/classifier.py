"""What a pretrained run is worth to a classifier with few labels, beside training from scratch.

Command: python benchmarks/classifier.py --run RUN --data LABELLED [--labels 10] [--draws 5] [--jobs 2]
         python benchmarks/classifier.py --tables-only
Cost:    three classifiers for each draw, about 2 minutes each on one core. Finished ones are kept.

Each draw divides the labelled videos anew, half of the groups for the test, and takes a few labelled videos of each
class from the others. `hdc-keras finetune` makes three classifiers of them: from the run, choosing by itself between
frozen features and training (`auto`); from the run, frozen; and from random weights (`--run none`), with the same
network, clips, augmentation and number of steps.

Results go to `studies/classifier.jsonl`, one line per classifier, and a table to `docs/classifier.md`.
"""

import argparse
import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import stats
from study import (
    BOOTSTRAP_DRAWS,
    DOCS,
    ROOT,
    STUDIES,
    Run,
    Study,
    command,
    digest_of_code,
    in_parallel,
    mean_right,
    write_section,
)

from hdc_keras.files import digest
from hdc_keras.runs.directory import RunDirectory

STUDY = STUDIES / "classifier.jsonl"
PAGE = DOCS / "classifier.md"
KEY = ("dataset", "run", "labels", "draw", "way")
SCRATCH = "from scratch"
WAYS = {"pretrained": ("--method", "auto"), "pretrained, frozen": ("--method", "frozen"), SCRATCH: ()}
HOLDOUT = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a pretrained run")
    parser.add_argument("--data", type=Path, help="labelled videos: a folder or a manifest")
    parser.add_argument("--labels", type=int, nargs="+", default=[10], help="labelled videos of each class")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="classifiers that are made at once, a core each")
    parser.add_argument("--tables-only", action="store_true", help="write the table from finished classifiers")
    arguments = parser.parse_args()
    study = Study(STUDY, KEY)
    if not arguments.tables_only:
        if not (arguments.run and arguments.data):
            parser.error("--run and --data are needed")
        weights = digest(arguments.run.resolve() / "checkpoints" / "best.keras")[:8]
        name = arguments.data.resolve().parent.name if arguments.data.is_file() else arguments.data.name
        wanted = [
            {"dataset": name, "run": weights, "labels": labels, "draw": draw, "way": way}
            for labels in arguments.labels
            for draw in range(arguments.draws)
            for way in WAYS
        ]
        missing = [one for one in wanted if not study.has(*one.values())]
        for one in in_parallel(
            lambda one: study.add(make(one, arguments.run, arguments.data)), missing, arguments.jobs
        ):
            print("done:", *one.values(), flush=True)
    if lines := study.runs():
        write_section(PAGE, "classifier", tables(lines))
        print(tables(lines))


def make(one: Run, run: Path, data: Path) -> Run:
    """Make one classifier, and return its line."""
    folder = ROOT / "runs" / "classifier" / "-".join(str(value).replace(" ", "-") for value in one.values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    origin = ["--run", "none", "--config", run / "config.yaml"] if one["way"] == SCRATCH else ["--run", run]
    settings = (f"seed={one['draw']}", f"evaluate.labels_per_class={one['labels']}", f"data.holdout={HOLDOUT}")
    arguments = [*origin, *WAYS[one["way"]], *(word for value in settings for word in ("--set", value))]
    command(folder.with_suffix(".log"), 1, "finetune", "--data", data.resolve(), "--out", folder, *arguments)
    facts = json.loads((folder / "classifier.json").read_text())
    with (folder / "test-videos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return one | {
        "steps_of_pretraining": RunDirectory(run).checkpoints.newest_step(),
        "code": digest_of_code(run / "config.yaml"),
        "seen_in_pretraining": facts["seen_in_pretraining"],
        "chosen": facts["chosen"],
        "classes": len(facts["classes"]),
        "top1": facts["test"]["top1"],
        "answers": {row["video_id"]: int(row["label"] == row["predicted"]) for row in rows},
        "groups": {row["video_id"]: row["group"] for row in rows},
    }


def difference(
    first: Mapping[int, Mapping[str, int]], second: Mapping[int, Mapping[str, int]], group_of: Mapping[str, str]
) -> tuple[float, float, float]:
    """Difference in the share of right answers, with its 95 % interval.

    The interval is from a bootstrap of draws and of groups; the draws divide the same groups anew, so a group is drawn
    for all of them. It is widened for the number of groups, by what makes it right for normal means.

    Args:
        first: 0 or 1 by draw and video.
        second: the same for what it is compared with.
        group_of: the group of each video.
    """
    draws = sorted(first.keys() & second.keys())
    groups = sorted(set(group_of.values()))
    sums, sizes = np.zeros((2, len(draws), len(groups)))
    for row, draw in enumerate(draws):
        for video in first[draw].keys() & second[draw].keys():
            column = groups.index(group_of[video])
            sums[row, column] += first[draw][video] - second[draw][video]
            sizes[row, column] += 1
    gap = float((sums.sum(axis=1) / sizes.sum(axis=1)).mean())
    rng, count = np.random.default_rng(0), len(groups)
    weights = rng.multinomial(count, np.full(count, 1 / count), BOOTSTRAP_DRAWS)
    by_draw = (weights @ sums.T) / np.maximum(weights @ sizes.T, 1)
    chosen = rng.integers(0, len(draws), (BOOTSTRAP_DRAWS, len(draws)))
    low, high = np.quantile(np.take_along_axis(by_draw, chosen, axis=1).mean(axis=1), [0.025, 0.975])
    widened = math.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975)
    return gap, float(gap + widened * (low - gap)), float(gap + widened * (high - gap))


def tables(lines: list[Run]) -> str:
    """A table for each set and number of labels."""
    parts = [
        "Share of test videos right. Differences are paired, with 95 % intervals from a bootstrap over draws "
        "and groups, widened for the number of groups."
    ]
    for data, run, labels in dict.fromkeys((line["dataset"], line["run"], line["labels"]) for line in lines):
        chosen = [line for line in lines if (line["dataset"], line["run"], line["labels"]) == (data, run, labels)]
        group_of = {name: group or name for line in chosen for name, group in line["groups"].items()}
        answers = {way: {line["draw"]: line["answers"] for line in chosen if line["way"] == way} for way in WAYS}
        rows = []
        for way, of_draw in answers.items():
            if not of_draw:
                continue
            cell = ""
            if way != SCRATCH and answers[SCRATCH]:
                gap, low, high = difference(of_draw, answers[SCRATCH], group_of)
                cell = f"{gap:+.3f} ({low:+.3f} to {high:+.3f})"
            whole = sum(line["chosen"] == "whole" for line in chosen if line["way"] == way)
            rows.append(f"| {way} | {mean_right(of_draw):.3f} ({len(of_draw)}) | {whole} | {cell} |")
        parts += [
            f"### {data}, {labels} labelled videos of each class",
            f"The run took {chosen[0]['steps_of_pretraining']} steps of pretraining. Of the test videos, "
            f"{_seen(chosen)} were in pretraining, without labels.",
            "| | right (draws) | of these, the whole network was trained | minus from scratch |\n|---|---|---|---|\n"
            + "\n".join(rows),
        ]
    return "\n\n".join(parts)


def _seen(lines: list[Run]) -> str:
    found = [line["seen_in_pretraining"] for line in lines if line["seen_in_pretraining"]]
    shares = sorted({f"{one['test_videos']} of {one['of']}" for one in found})
    return shares[0] if len(shares) == 1 else f"{shares[0]} to {shares[-1]}" if shares else "an unknown number"


if __name__ == "__main__":
    main()
