"""Cross-validate HDC and its ablations on a small labelled set: k folds by group, equal compute, several seeds.

Command: python benchmarks/cross_validation.py --data PATH [--folds 5] [--seeds 0 1 2] [--variants hdc coupled]
         python benchmarks/cross_validation.py --tables-only      (no training: tables from finished runs)
Cost:    seeds x variants x folds runs of `hdc-keras pretrain --config videos-cpu`, each with two fine-tunings: about 4
         minutes per run on one core for 140 short videos. It can be stopped at any time; finished runs are kept.

PATH is a folder of class folders or a CSV manifest; the videos of one group are never on both sides of a split. Each
fold's network is pretrained on the videos of the other folds. Its frozen features are evaluated on the fold, and it is
fine-tuned with the labels of the other folds. The folds of one seed test every video once. Each seed divides the set
differently, and all variants share the division.

The table also has random initialisation and two baselines without a network: a ridge classifier of each file's width,
height, frame rate and length, and one of its mean absolute difference between frames.

Results go to `studies/cross-validation-{name of the set}.jsonl`, one line per run, and the table to
`docs/cross-validation.md`.
"""

import argparse
import csv
import os
import statistics
from pathlib import Path

import av
import numpy as np
from study import DOCS, ROOT, STUDIES, Run, Study, equal_compute, in_parallel, train_and_evaluate, write_section

from hdc_keras.config import PRESETS
from hdc_keras.data.decoding import count_frames, decode
from hdc_keras.data.records import VideoRecord, read_records

CONFIG = ROOT / "configs" / "videos-cpu.yaml"
# Protocols, and what each of them evaluates: the features of all stages, or the fine-tuned network.
PROTOCOLS = {"linear": "features", "knn": "features", "finetune-rspnet": "fine-tuned"}
BASELINES = ("file metadata", "frame difference")
KEY = ("variant", "seed", "fold")
# Frames are resized to this before differences are taken, which makes videos of different sizes comparable.
DIFFERENCE_SIZE = (48, 64)


def divide(records: list[VideoRecord], folds: int, seed: int) -> list[list[int]]:
    """Positions of the videos of each fold. Classes are balanced as far as whole groups allow."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    labels, groups = [record.label for record in records], [record.group for record in records]
    return [held_out.tolist() for _, held_out in splitter.split(records, labels, groups)]


def describe(name: str, records: list[VideoRecord], folds: int) -> Run:
    """What every run says about its data, so that the table needs no videos."""
    labels = [record.label for record in records]
    largest_class = max(map(labels.count, labels)) / len(labels)
    groups = len({record.group for record in records})
    data = {"name": name, "videos": len(records), "groups": groups, "largest_class": largest_class}
    return {"data": data, "folds": folds}


def write_manifest(path: Path, records: list[VideoRecord], held_out: list[int]) -> None:
    """Write the set as a CSV manifest whose test split is the fold."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split"])
        for position, record in enumerate(records):
            split = "test" if position in held_out else "train"
            writer.writerow([Path(record.path).resolve(), record.label, record.group, split])


def run(
    records: list[VideoRecord], job: tuple[str, int, int], about: Run, study: Study, runs: Path, threads: int
) -> None:
    """Pretrain without one fold, evaluate on it, and add the result to the study."""
    variant, seed, fold = job
    held_out = divide(records, about["folds"], seed)[fold]
    directory = runs / f"{variant}-{seed}-{fold}"
    manifest = directory.with_suffix(".csv")
    write_manifest(manifest, records, held_out)
    epochs, clips = equal_compute(CONFIG, [], [], variant, len(records) - len(held_out))
    overrides = [f"data.path={manifest.resolve()}", f"seed={seed}", f"train.epochs={epochs}"]
    overrides += ["train.knn_every=0", "train.checkpoint_every=1000"]
    results, environment = train_and_evaluate(directory, CONFIG, variant, overrides, list(PROTOCOLS), threads)
    (column,) = results["linear"]["metrics"]
    shares = {
        network: {
            protocol: result[network][column][PROTOCOLS[protocol]]["top1"] for protocol, result in results.items()
        }
        for network in ("metrics", "random_weights")
    }
    identity = {"variant": variant, "seed": seed, "fold": fold}
    measured = {"clips": clips, "commit": environment["commit"], "videos": results["linear"]["split"]["test"], **shares}
    study.add(identity | about | measured)


def evaluate_baselines(records: list[VideoRecord], about: Run, seeds: list[int], study: Study) -> None:
    """Fit the ridge classifiers on the same folds, and add their results to the study."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values_of = dict(zip(BASELINES, (metadata(records), frame_difference(records)), strict=True))
    labels = np.array([record.label for record in records])
    runs = []
    for seed in seeds:
        for fold, held_out in enumerate(divide(records, about["folds"], seed)):
            rest = [position for position in range(len(records)) if position not in held_out]
            for name, values in values_of.items():
                classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 3, 7)))
                share = classifier.fit(values[rest], labels[rest]).score(values[held_out], labels[held_out])
                identity = {"variant": name, "seed": seed, "fold": fold}
                runs.append(identity | about | {"videos": len(held_out), "metrics": {"ridge": share}})
    study.add(*runs)


def metadata(records: list[VideoRecord]) -> np.ndarray:
    """Width, height, frames per second and number of frames of each video. Shape (videos, 4)."""
    rows = []
    for record in records:
        with av.open(record.path) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            rows.append([stream.width, stream.height, rate, count_frames(record.path)])
    return np.array(rows, float)


def frame_difference(records: list[VideoRecord]) -> np.ndarray:
    """Mean absolute difference between consecutive frames of each video. Shape (videos, 1)."""
    rows = []
    for record in records:
        frames = decode(record.path, np.arange(count_frames(record.path)), DIFFERENCE_SIZE).astype(np.int16)
        rows.append([np.abs(np.diff(frames, axis=0)).mean()])
    return np.array(rows)


def shares_by_seed(runs: list[Run], protocol: str, network: str = "metrics") -> dict[int, float]:
    """Share of all videos classified correctly, by seed. Seeds with a missing fold are left out."""
    shares = {}
    for seed in sorted({run["seed"] for run in runs}):
        folds = [run for run in runs if run["seed"] == seed and protocol in run.get(network, {})]
        if folds and len(folds) == folds[0]["folds"]:
            correct = sum(run["videos"] * run[network][protocol] for run in folds)
            shares[seed] = correct / sum(run["videos"] for run in folds)
    return shares


def random_initialisation(trained: dict[str, list[Run]]) -> list[Run]:
    """Results of random weights, one per seed and fold.

    They are the same beside every variant, but not every variant was evaluated with every protocol.
    """
    folds: dict[tuple[int, int], Run] = {}
    for run in (run for runs in trained.values() for run in runs):
        merged = folds.setdefault((run["seed"], run["fold"]), {**run, "random_weights": {}})
        merged["random_weights"] |= run["random_weights"]
    return list(folds.values())


def deviation_over_folds(runs: list[Run], shares: dict[int, float], protocol: str, network: str) -> float:
    """Standard deviation over all folds of the complete seeds."""
    values = [run[network][protocol] for run in runs if run["seed"] in shares and protocol in run[network]]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def formatted(shares: dict[int, float], over_folds: float | None = None) -> str:
    """Mean ± standard deviation over seeds; standard deviation over folds."""
    if not shares:
        return ""
    values = list(shares.values())
    over_seeds = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{over_seeds}" + (f"; {over_folds:.3f}" if over_folds is not None else "")


def table(study: Study) -> str:
    """The table in Markdown, and how precise its figures are."""
    results = study.by_variant()
    about = study.runs()[0]
    data, folds = about["data"], about["folds"]
    lines = [
        f"### {data['name']}",
        "",
        f"{data['videos']} videos in {data['groups']} groups, {folds} folds by group, config `videos-cpu`, pretrained "
        "without the fold, equal clips through the backbone. Share of videos classified correctly, from frozen "
        "features of all stages or after fine-tuning: mean ± standard deviation over seeds; standard deviation over "
        f"all folds of all seeds. The largest class is {data['largest_class']:.3f} of the set.",
        "",
        "| variant | seeds | " + " | ".join(PROTOCOLS) + " |",
        "|---|---|" + "---|" * len(PROTOCOLS),
    ]
    trained = {name: runs for name, runs in results.items() if name not in BASELINES}
    rows = {"random initialisation": ("random_weights", random_initialisation(trained))}
    rows |= {name: ("metrics", runs) for name, runs in trained.items()}
    for name, (network, runs) in rows.items():
        shares = {protocol: shares_by_seed(runs, protocol, network) for protocol in PROTOCOLS}
        cells = [
            formatted(share, deviation_over_folds(runs, share, protocol, network)) for protocol, share in shares.items()
        ]
        lines.append(f"| {name} | {len(shares['linear'])} | " + " | ".join(cells) + " |")
    lines += ["", "| ridge classifier of | seeds | correct |", "|---|---|---|"]
    for name in BASELINES:
        runs = results.get(name, [])
        share = shares_by_seed(runs, "ridge")
        lines.append(
            f"| {name} | {len(share)} | {formatted(share, deviation_over_folds(runs, share, 'ridge', 'metrics'))} |"
        )
    lines.append("")
    if {"hdc", "coupled"} <= set(results):
        differences = []
        for protocol in PROTOCOLS:
            hdc, coupled = (shares_by_seed(results[name], protocol) for name in ("hdc", "coupled"))
            in_both = {seed: hdc[seed] - coupled[seed] for seed in hdc if seed in coupled}
            differences += [f"{protocol} {formatted(in_both)}"] if in_both else []
        lines += [f"HDC minus coupled, paired by seed: {', '.join(differences)}.", ""] if differences else []
    by_video, by_group = (0.5 / count**0.5 for count in (data["videos"], data["groups"]))
    lines += [
        "The set itself is a sample, and the standard deviation over seeds does not include that. The standard error "
        f"of one share is up to {by_video:.3f} if the {data['videos']} videos are independent, and up to "
        f"{by_group:.3f} if only the {data['groups']} groups are. Two variants differ clearly (by two standard "
        f"errors, taking their errors as independent) from a difference of about {2 * 2**0.5 * by_video:.2f}, or "
        f"{2 * 2**0.5 * by_group:.2f} by groups. This set cannot resolve smaller differences.",
    ]
    return "\n".join(lines)


def write_docs(study: Study) -> str:
    """Write the study's table to the docs, and return it."""
    text = table(study)
    write_section(DOCS / "cross-validation.md", study.name, text)
    return text


def open_study(file: Path, about: Run | None = None) -> Study:
    """The study of a file. All its runs must be on one set and one number of folds: those of `about`, if given."""
    study = Study(file, KEY)
    for run in study.runs():
        about = about or run
        if any(run[field] != about[field] for field in ("data", "folds")):
            raise SystemExit(
                f"{file} holds runs on {run['data']} with {run['folds']} folds, which cannot be combined with "
                f"{about['data']} and {about['folds']} folds"
            )
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="labelled folder or CSV manifest")
    parser.add_argument("--folds", type=int, default=5, help="number of folds")
    parser.add_argument(
        "--variants", nargs="+", choices=list(PRESETS), default=["hdc", "coupled"], help="presets to compare"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each seed divides the set anew")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/cross-validation"), help="folder for unfinished runs")
    parser.add_argument("--tables-only", action="store_true", help="write the tables of all finished runs; no training")
    arguments = parser.parse_args()
    if arguments.tables_only:
        for file in sorted(STUDIES.glob("cross-validation-*.jsonl")):
            print(write_docs(open_study(file)))
        return
    if not arguments.data:
        parser.error("--data is required, except with --tables-only")
    arguments.runs.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    records = read_records(arguments.data)
    name = arguments.data.resolve().stem
    about = describe(name, records, arguments.folds)
    study = open_study(STUDIES / f"cross-validation-{name}.jsonl", about)

    def job(item: tuple[str, int, int]) -> None:
        if not study.has(*item):
            run(records, item, about, study, arguments.runs, threads)

    evaluate_baselines(records, about, arguments.seeds, study)
    items = [
        (variant, seed, fold)
        for seed in arguments.seeds
        for fold in range(arguments.folds)
        for variant in arguments.variants
    ]
    for variant, seed, fold in in_parallel(job, items, arguments.jobs):
        print(f"done: {variant}, seed {seed}, fold {fold}", flush=True)
        write_docs(study)
    print(write_docs(study))


if __name__ == "__main__":
    main()
