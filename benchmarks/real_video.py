"""Study HDC and its ablations on small labelled sets of real video: folds by group, equal compute, several seeds.

Command: python benchmarks/real_video.py --data SET [--data SET ...] [--together] [--variants hdc ...] [--seeds 0 1 2]
         python benchmarks/real_video.py --tables-only      (no training: tables and figure from finished runs)
Cost:    sets x seeds x folds x variants runs of `hdc-keras pretrain --config videos-cpu`, one on each core at a time:
         about 5 minutes a run on one core, 10 with few labels. It can be stopped at any time; finished runs are kept.

SET is a folder of class folders or a CSV manifest with labels; the videos of one group are never on both sides of a
split. Each fold's network is pretrained on the videos of the other folds, without labels: of its own set or, with
--together, of all sets together. A linear probe and kNN on its frozen features of all stages are fitted to the other
folds and tested on the fold. The folds of a seed test every video once; each seed divides the sets differently, and all
variants share the division and the number of clips through the backbone. A run takes a quarter of the steps of
`videos-cpu`.

The network of `hdc` is also evaluated with labels for only a few videos of each class (`few_labels.py`).

Beside them stand the same network with random weights, and ridge classifiers of what needs no network: the file's
metadata, the middle frame, and the mean absolute difference between frames.

Results go to `studies/real-video.jsonl`, one line per run, and tables and figure to `docs/real-video.md`.
"""

import argparse
import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import few_labels
import numpy as np
from baselines import BASELINES
from study import (
    DOCS,
    ROOT,
    STUDIES,
    Run,
    Study,
    digest_of_code,
    equal_compute,
    in_parallel,
    paired_difference,
    pretrain_and_evaluate,
    write_section,
)

from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.errors import DataError

CONFIG = ROOT / "configs" / "videos-cpu.yaml"
STUDY = STUDIES / "real-video.jsonl"
PAGE = DOCS / "real-video.md"
FIGURE = DOCS / "images" / "real-video.png"
FEW_LABELS_FIGURE = DOCS / "images" / "few-labels.png"
PROTOCOLS = ("linear", "knn")
TOGETHER = "all sets"
KEY = ("trained_on", "variant", "seed", "fold")
RANDOM, RANDOM_EMBEDDINGS = "random weights", "random weights, embeddings of unit length"
# Preset and `--set` values of each variant; `hdc` is what `videos-cpu` trains without a preset.
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "hdc": ("hdc-every-level", []),
    "hdc, each task at its own stages": ("hdc", []),
    "hdc, equal weights": ("hdc-every-level", ["contrast.weighting=uniform"]),
    "hdc, weights to the power of 4": ("hdc-every-level", ["contrast.gamma=4"]),
    "hdc, weights to the power of -4": ("hdc-every-level", ["contrast.gamma=-4"]),
    "coupled": ("coupled", []),
    "spatial": ("spatial", []),
    "temporal": ("temporal", []),
    "hdc, crops from whole frames": ("hdc-every-level", ["views.focus=null"]),
    "hdc, camera's motion kept": ("hdc-every-level", ["views.steady=false"]),
    "hdc, sees frames": ("hdc-every-level", ["model.backbone=r3d_small"]),
    "coupled, sees frames": ("coupled", ["model.backbone=r3d_small"]),
}

# What a variant is compared with: the same network, which sees frames or differences between frames.
HDC, HDC_OF_FRAMES, RANDOM_OF_FRAMES = "hdc", "hdc, sees frames", "random weights, sees frames"
OF_FRAMES = ("coupled, sees frames", RANDOM_OF_FRAMES)

Sets = Mapping[str, list[VideoRecord]]


def divide(records: list[VideoRecord], folds: int, seed: int) -> list[list[int]]:
    """Positions of the videos of each fold. Classes are balanced as far as whole groups allow."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    labels, groups = [record.label for record in records], [record.group or record.video_id for record in records]
    return [held_out.tolist() for _, held_out in splitter.split(records, labels, groups)]


def write_manifest(path: Path, records: Sequence[VideoRecord], held_out: Sequence[VideoRecord]) -> None:
    """Write videos as a CSV manifest whose test split is `held_out`."""
    tested = {record.path for record in held_out}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split"])
        for record in records:
            split = "test" if record.path in tested else "train"
            writer.writerow([Path(record.path).resolve(), record.label, record.group, split])


def run(
    sets: Sets,
    job: tuple[str, str, int, int],
    folds: int,
    steps: int,
    labels: Sequence[str],
    study: Study,
    runs: Path,
    threads: int,
) -> None:
    """Pretrain without one fold, evaluate on it, and add the result to the study.

    `hdc` takes this number of steps, and is evaluated with these numbers of labelled videos of each class too.
    """
    trained_on, variant, seed, fold = job
    directory = runs / "-".join(map(str, job)).replace(" ", "-")
    own = list(sets) if trained_on == TOGETHER else [trained_on]
    held_out = {name: [sets[name][place] for place in divide(sets[name], folds, seed)[fold]] for name in own}
    manifests = {name: directory.with_name(f"{directory.name}-{name}.csv") for name in [*own, "pretrain"]}
    for name in own:
        write_manifest(manifests[name], sets[name], held_out[name])
    write_manifest(
        manifests["pretrain"],
        [record for name in own for record in sets[name]],
        [record for name in own for record in held_out[name]],
    )
    preset, changes = VARIANTS[variant]
    videos = sum(len(sets[name]) - len(held_out[name]) for name in own)
    length, clips = equal_compute(CONFIG, [f"train.steps={steps}"], changes, preset, videos)
    overrides = [f"data.path={manifests['pretrain'].resolve()}", f"seed={seed}", length, "train.knn_every=0", *changes]
    of_few_labels: Run = {}

    def with_few_labels(directory: Path) -> None:
        for name in own if variant == "hdc" else []:
            classes = len({record.label for record in sets[name]})
            found = few_labels.measure(directory, manifests[name], labels, classes, seed, threads)
            of_few_labels[name] = {
                count: {way: _right(sets[name], rows) for way, rows in ways.items()} for count, ways in found.items()
            }

    found, environment = pretrain_and_evaluate(
        directory,
        CONFIG,
        preset,
        overrides,
        list(PROTOCOLS),
        threads,
        {name: manifests[name] for name in own},
        with_few_labels if labels and trained_on != TOGETHER else None,
    )
    line: Run = dict(zip(KEY, job, strict=True)) | {
        "folds": folds,
        "steps": steps,
        "clips": clips,
        "commit": environment["commit"],
        "code": digest_of_code(CONFIG),
    }
    line["results"] = {
        name: {protocol: _figures(sets[name], *found[name, protocol]) for protocol in PROTOCOLS} for name in own
    }
    if of_few_labels:
        line["few_labels"] = of_few_labels
    study.add(line)


def _right(records: list[VideoRecord], rows: list[dict[str, str]]) -> dict[str, int]:
    """Whether each test video was classified correctly, by its position in the set; `write_manifest` named it."""
    places = {str(Path(record.path).resolve()): str(place) for place, record in enumerate(records)}
    return {places[row["video_id"]]: int(row["label"] == row["predicted"]) for row in rows}


def _figures(records: list[VideoRecord], result: Run, videos: list[dict[str, str]]) -> Run:
    """Accuracy of each source, and for each test video whether all stages' features got it right, by network."""
    (column,) = result["metrics"]
    figures: Run = {}
    for network, name in (("metrics", "pretrained"), ("random_weights", RANDOM)):
        rows = [row for row in videos if row["network"] == network and row["source"] == "features"]
        figures[name] = {
            "top1": {source: round(values["top1"], 4) for source, values in result[network][column].items()},
            "right": _right(records, rows),
        }
    return figures


def evaluate_baselines(sets: Sets, seeds: Sequence[int], folds: int, study: Study) -> None:
    """Fit the ridge classifiers on the same folds, and add their results to the study."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for name, records in sets.items():
        labels = np.array([record.label for record in records])
        for baseline, describe in BASELINES.items():
            missing = [s for s in seeds if not all(study.has(name, baseline, s, fold) for fold in range(folds))]
            values = np.array([describe(record.path) for record in records]) if missing else np.zeros(0)
            for seed in missing:
                for fold, held_out in enumerate(divide(records, folds, seed)):
                    rest = np.setdiff1d(np.arange(len(records)), held_out)
                    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 5, 9)))
                    right = classifier.fit(values[rest], labels[rest]).predict(values[held_out]) == labels[held_out]
                    answers = {"right": dict(zip(map(str, held_out), map(int, right), strict=True))}
                    line: Run = dict(zip(KEY, (name, baseline, seed, fold), strict=True)) | {"folds": folds}
                    study.add(line | {"results": {name: {"ridge": {"pretrained": answers}}}})


class Answers:
    """Which videos of a set each variant got right: complete seeds only, in which every fold is finished.

    Attributes:
        right: by variant and seed, 0 or 1 for each video, by its position in the set.
        random_embeddings: by seed, the share of videos that the embeddings of random weights get right. They are scaled
            to unit length, which leaves out how much moves.
    """

    def __init__(self, study: Study, data: str, trained_on: str, protocol: str):
        found: dict[str, dict[int, list[dict[str, int]]]] = {}
        folds: dict[tuple[str, int], int] = {}
        by_embeddings: dict[int, float] = {}
        for line in study.runs():
            is_baseline = line["variant"] in BASELINES
            if line["trained_on"] != (data if is_baseline else trained_on) or data not in line["results"]:
                continue
            result = line["results"][data]["ridge" if is_baseline else protocol]
            rows = {line["variant"]: result["pretrained"]}
            if line["variant"] == HDC_OF_FRAMES:
                rows[RANDOM_OF_FRAMES] = result[RANDOM]
            if line["variant"] == HDC:
                rows[RANDOM] = result[RANDOM]
                right = result[RANDOM]["top1"]["all embeddings"] * len(result[RANDOM]["right"])
                by_embeddings[line["seed"]] = by_embeddings.get(line["seed"], 0.0) + right
            for name, answers in rows.items():
                folds[name, line["seed"]] = line["folds"]
                found.setdefault(name, {}).setdefault(line["seed"], []).append(answers["right"])
        self.right = {
            variant: {
                seed: {video: right for part in parts for video, right in part.items()}
                for seed, parts in by_seed.items()
                if len(parts) == folds[variant, seed]
            }
            for variant, by_seed in found.items()
        }

        complete = self.right.get(RANDOM, {})
        self.random_embeddings = {seed: by_embeddings[seed] / len(videos) for seed, videos in complete.items()}

    def share(self, variant: str) -> tuple[float, float, int] | None:
        """Mean share of right answers over seeds, its standard deviation, and the number of seeds."""
        shares = [float(np.mean(list(videos.values()))) for videos in self.right.get(variant, {}).values()]
        if variant == RANDOM_EMBEDDINGS:
            shares = list(self.random_embeddings.values())
        return (
            (float(np.mean(shares)), float(np.std(shares, ddof=1)) if len(shares) > 1 else 0.0, len(shares))
            if shares
            else None
        )

    def difference(self, first: str, second: str, group_of: Mapping[str, int]) -> tuple[float, float, float] | None:
        """Difference of two variants in the seeds that both have, with its 95 % interval."""
        if not self.right.get(first, {}).keys() & self.right.get(second, {}).keys():
            return None
        return paired_difference(self.right[first], self.right[second], group_of)


def order_of(variants: Sequence[str]) -> list[str]:
    """Variants in the order of tables and figures."""
    return [name for name in [*VARIANTS, RANDOM, RANDOM_EMBEDDINGS, RANDOM_OF_FRAMES, *BASELINES] if name in variants]


def table(study: Study, sets: Run, trained_on: str, data: str) -> str:
    """The table of one set, for networks pretrained on one or all sets."""
    about = sets[data]
    rows = []
    answers = {protocol: Answers(study, data, trained_on, protocol) for protocol in PROTOCOLS}
    known = [*answers["linear"].right, RANDOM_EMBEDDINGS]
    for variant in order_of([name for name in known if answers["linear"].share(name)]):
        cells = [variant]
        for protocol in PROTOCOLS:
            is_repeated = variant in BASELINES and protocol != PROTOCOLS[0]
            share = None if is_repeated else answers[protocol].share(variant)
            cells.append("" if share is None else _shown(*share))
            reference = HDC_OF_FRAMES if variant in OF_FRAMES else HDC
            gap = (
                None
                if variant == HDC or is_repeated
                else answers[protocol].difference(reference, variant, about["groups"])
            )
            cells.append("" if gap is None else f"{gap[0]:+.3f} ({gap[1]:+.3f} to {gap[2]:+.3f})")
        rows.append(f"| {' | '.join(cells)} |")
    count = len(set(about["groups"].values()))
    return "\n".join(
        [
            f"### {data}, pretrained on {'its own videos' if trained_on == data else trained_on}",
            "",
            f"{len(about['groups'])} videos of {about['classes']} classes in {count} groups; the largest class is "
            f"{about['largest_class']:.3f} of the set.",
            "",
            "| | linear probe | HDC minus this | kNN | HDC minus this |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _shown(mean: float, deviation: float, seeds: int) -> str:
    return f"{mean:.3f} ± {deviation:.3f} ({seeds})" if seeds > 1 else f"{mean:.3f} (1)"


def draw(study: Study, sets: Run) -> None:
    """Draw the linear probe's accuracy of each set and variant."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(sets), figsize=(4.2 * len(sets), 3.4), squeeze=False, layout="constrained")
    for axis, (data, about) in zip(axes[0], sets.items(), strict=True):
        answers = Answers(study, data, data, "linear")
        shares = {name: answers.share(name) for name in order_of(list(answers.right))[::-1]}
        names = [name for name, share in shares.items() if share]
        colours = ["#1f6f8b" if name == HDC else "#9aa5ab" if name in VARIANTS else "#d4d9dc" for name in names]
        axis.barh(names, [share[0] for share in shares.values() if share], color=colours)
        axis.axvline(about["largest_class"], color="black", linewidth=0.8, linestyle=":")
        axis.set(title=data, xlim=(0, 1), xlabel="share of videos right")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, dpi=130)
    pyplot.close(figure)


def write_docs(study: Study) -> str:
    """Write the tables and the figure to the docs, and return the tables."""
    about = [line for line in study.runs() if line["variant"] == "about"]
    if not about:
        raise SystemExit(f"{study.file} holds no runs.")
    sets = about[0]["sets"]
    trainings = {line["trained_on"] for line in study.runs()}
    # Older lines have a commit only; "-dirty" meant the file of the study itself.
    versions = {line.get("code", line["commit"].removesuffix("-dirty")) for line in study.runs() if "commit" in line}
    parts = [
        "Share of videos classified correctly: mean ± standard deviation over seeds (number of seeds). Differences are "
        "paired, with 95 % intervals from a bootstrap over groups and seeds, widened for the number of groups. With "
        "one seed, intervals are over groups only: another training may differ by more."
        " Coupled contrast and random weights that see frames are compared with HDC that sees frames."
        + (f" These runs are of {len(versions)} versions of the code." if len(versions) > 1 else ""),
        *(
            table(study, sets, trained_on, data)
            for data in sets
            for trained_on in (data, TOGETHER)
            if trained_on in trainings
        ),
    ]
    draw(study, sets)
    lines = [line for line in study.runs() if line["trained_on"] in sets]
    with_few = {data: about for data, about in sets.items() if few_labels.answers_of(lines, data)}
    if with_few:
        parts += [few_labels.table(lines, data, about["groups"]) for data, about in with_few.items()]
        if all(len(few_labels.answers_of(lines, data)) > 1 for data in with_few):  # a curve needs two points
            few_labels.draw(lines, with_few, FEW_LABELS_FIGURE)
    text = "\n\n".join(parts)
    write_section(PAGE, study.name, text)
    return text


def describe(sets: Sets) -> Run:
    """What the tables need to know of the sets, so that they can be written without the videos."""
    found = {}
    for name, records in sets.items():
        labels = [record.label for record in records]
        names = [record.group or record.video_id for record in records]
        groups = sorted(set(names))
        found[name] = {
            "classes": len(set(labels)),
            "largest_class": max(map(labels.count, labels)) / len(labels),
            "groups": {str(place): groups.index(group) for place, group in enumerate(names)},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", help="labelled folder or CSV manifest; repeatable")
    parser.add_argument("--folds", type=int, default=5, help="number of folds")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        default=["hdc", "coupled", "temporal"],
        help="what to compare",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each seed divides the sets anew")
    parser.add_argument("--steps", type=int, default=500, help="steps of hdc; others process as many clips")
    parser.add_argument(
        "--labels",
        nargs="*",
        type=few_labels.label_count,
        default=["1", "2", "5", few_labels.ALL],
        help="labelled videos of each class, for hdc, or `all`; none to skip. A finished run does not get more of them",
    )
    parser.add_argument("--together", action="store_true", help="pretrain on all sets together, instead of on each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/real-video"), help="folder for unfinished runs")
    parser.add_argument(
        "--tables-only", action="store_true", help="tables and figure of the finished runs; no training"
    )
    arguments = parser.parse_args()
    study = Study(STUDY, KEY)
    if arguments.tables_only:
        print(write_docs(study))
        return
    if not arguments.data:
        parser.error("--data is required, except with --tables-only")
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    names = [name_of(path) for path in arguments.data]
    if len(set(names)) < len(names):
        parser.error(f"--data: sets of the same name: {', '.join(names)}. Give each folder a name of its own.")
    try:
        sets = {name: read_records(path) for name, path in zip(names, arguments.data, strict=True)}
    except DataError as error:
        parser.error(str(error))
    items = [
        (trained_on, variant, seed, fold)
        for seed in arguments.seeds
        for fold in range(arguments.folds)
        for variant in arguments.variants
        for trained_on in ([TOGETHER] if arguments.together else sets)
    ]

    finished = {tuple(line[field] for field in KEY) for line in study.runs()}
    for line in study.runs():
        # Baselines take no steps, and the line about the sets has no folds.
        if (
            line.get("folds", arguments.folds) != arguments.folds
            or line.get("steps", arguments.steps) != arguments.steps
        ):
            parser.error(f"{STUDY} holds runs with other folds or steps. Give the same, or move the file.")
        known_groups = line.get("sets", {})
        if any(name in known_groups and known_groups[name] != about for name, about in describe(sets).items()):
            parser.error(
                f"{STUDY} holds runs of a set of the same name with other videos. Rename the set, or move the file."
            )
    unfinished = [item for item in items if item not in finished]
    arguments.runs.mkdir(parents=True, exist_ok=True)
    known = {}
    for line in study.runs():
        known |= line["sets"] if line["variant"] == "about" else {}
    study.add(dict(zip(KEY, ("", "about", 0, 0), strict=True)) | {"sets": known | describe(sets), "results": {}})
    evaluate_baselines(sets, arguments.seeds, arguments.folds, study)

    def job(item: tuple[str, str, int, int]) -> None:
        run(sets, item, arguments.folds, arguments.steps, arguments.labels, study, arguments.runs, threads)

    for item in in_parallel(job, unfinished, arguments.jobs):
        print("done:", *item, flush=True)
    print(write_docs(study))


def name_of(path: Path) -> str:
    """Name of a set: its folder, or the folder of a manifest that is called clips.csv as others are."""
    return path.resolve().parent.name if path.stem in ("clips", "manifest", "videos") else path.resolve().stem


if __name__ == "__main__":
    main()
