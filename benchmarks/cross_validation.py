"""HDC and its ablations on a small labelled set of one's own: k-fold, by group, at equal compute, over several seeds.

Command: python benchmarks/cross_validation.py --data ../shared/data/fight-surv [--folds 5] [--seeds 0 1 2]
         [--variants hdc coupled]
Cost: seeds x variants x folds runs of `hdc-keras pretrain --config videos-cpu` with two fine-tunings each, about 4
minutes on a core for 140 short videos, a run a core. Stop it at any time: what is finished is not done again.

Videos of one group are never on both sides. A fold's network is pretrained on the videos of the other folds alone; its
frozen features are judged on the fold, and it is fine-tuned with the other folds' labels. The folds of a seed together
judge every video once. Each seed divides the set anew, alike for all variants. Beside them are random initialisation
and two baselines that see nothing: a ridge classifier of each file's width, height, rate and length, and one of its
mean absolute frame difference. Results are in `docs/cross-validation/{data set}`: a file a run, and the table
`README.md`.
"""

import argparse
import csv
import json
import os
import statistics
from pathlib import Path

import av
import numpy as np
from study import equal_compute, in_parallel, keep, train_and_judge

from hdc_keras.config import PRESETS
from hdc_keras.data.decoding import count_frames, decode
from hdc_keras.data.records import VideoRecord, read_records

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "videos-cpu.yaml"
# What is judged by each protocol: all stages' features, or the network that is trained on.
PROTOCOLS = {"linear": "features", "knn": "features", "finetune-rspnet": "fine-tuned"}
BASELINES = ("file metadata", "frame difference")
# Frame differences are taken at this size, which makes videos of different sizes comparable.
DIFFERENCE_SIZE = (48, 64)


def divide(records: list[VideoRecord], folds: int, seed: int) -> list[list[int]]:
    """Positions of each fold's videos: classes in equal shares as far as whole groups allow."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    labels, groups = [record.label for record in records], [record.group for record in records]
    return [held_out.tolist() for _, held_out in splitter.split(records, labels, groups)]


def write_manifest(path: Path, records: list[VideoRecord], held_out: list[int]) -> None:
    """The set as a CSV whose test split is the fold."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split"])
        for position, record in enumerate(records):
            split = "test" if position in held_out else "train"
            writer.writerow([Path(record.path).resolve(), record.label, record.group, split])


def run(
    records: list[VideoRecord], job: tuple[str, int, int], folds: int, file: Path, runs: Path, threads: int
) -> None:
    """Pretrain without one fold and judge on it."""
    variant, seed, fold = job
    held_out = divide(records, folds, seed)[fold]
    manifest = runs / f"{file.stem}.csv"
    write_manifest(manifest, records, held_out)
    epochs, clips = equal_compute(CONFIG, [], [], variant, len(records) - len(held_out))
    overrides = [f"data.path={manifest.resolve()}", f"seed={seed}", f"train.epochs={epochs}"]
    overrides += ["train.knn_every=0", "train.checkpoint_every=1000"]
    results, made_with = train_and_judge(runs / file.stem, CONFIG, variant, overrides, list(PROTOCOLS), threads)
    (column,) = results["linear"]["metrics"]
    kept = {"variant": variant, "seed": seed, "fold": fold, "clips": clips, "commit": made_with["commit"]}
    kept["videos"] = results["linear"]["split"]["test"]
    for name in ("metrics", "random_weights"):
        kept[name] = {
            protocol: result[name][column][PROTOCOLS[protocol]]["top1"] for protocol, result in results.items()
        }
    keep(file, kept)


def judge_baselines(records: list[VideoRecord], folds: int, seeds: list[int], folder: Path) -> None:
    """Ridge classifiers of what needs no network, on the same folds; a file a baseline, seed and fold."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = dict(zip(BASELINES, (metadata(records), frame_difference(records)), strict=True))
    labels = np.array([record.label for record in records])
    for seed in seeds:
        for number, held_out in enumerate(divide(records, folds, seed)):
            rest = [position for position in range(len(records)) if position not in held_out]
            for name, values in known.items():
                classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 3, 7)))
                share = classifier.fit(values[rest], labels[rest]).score(values[held_out], labels[held_out])
                kept = {"variant": name, "seed": seed, "fold": number, "videos": len(held_out)}
                keep(folder / f"{name.replace(' ', '-')}-{seed}-{number}.json", {**kept, "metrics": {"ridge": share}})


def metadata(records: list[VideoRecord]) -> np.ndarray:
    """(videos, 4): width, height, frames a second, frames."""
    rows = []
    for record in records:
        with av.open(record.path) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            rows.append([stream.width, stream.height, rate, count_frames(record.path)])
    return np.array(rows, float)


def frame_difference(records: list[VideoRecord]) -> np.ndarray:
    """(videos, 1): mean absolute difference of a frame to the next."""
    rows = []
    for record in records:
        frames = decode(record.path, np.arange(count_frames(record.path)), DIFFERENCE_SIZE).astype(np.int16)
        rows.append([np.abs(np.diff(frames, axis=0)).mean()])
    return np.array(rows)


def by_seed(results: list[dict], folds: int, protocol: str, key: str = "metrics") -> dict[int, float]:
    """Share of all videos judged rightly, by seed; seeds that lack a fold are left out."""
    shares = {}
    for seed in sorted({result["seed"] for result in results}):
        of_seed = [result for result in results if result["seed"] == seed and protocol in result.get(key, {})]
        if len(of_seed) == folds:
            right = sum(result["videos"] * result[key][protocol] for result in of_seed)
            shares[seed] = right / sum(result["videos"] for result in of_seed)
    return shares


def merged(trained: dict[str, list[dict]]) -> list[dict]:
    """What random weights got on each fold, which is the same beside every variant, but not by as many protocols."""
    folds: dict[tuple[int, int], dict] = {}
    for result in (result for runs in trained.values() for result in runs):
        place = folds.setdefault((result["seed"], result["fold"]), {**result, "random_weights": {}})
        place["random_weights"] |= result["random_weights"]
    return list(folds.values())


def over_folds(results: list[dict], shares: dict[int, float], protocol: str, key: str) -> float:
    """Standard deviation over the folds of the seeds that are complete."""
    values = [result[key][protocol] for result in results if result["seed"] in shares and protocol in result[key]]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def shown(shares: dict[int, float], folds: float | None = None) -> str:
    values = list(shares.values())
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    by_fold = f"; {folds:.3f}" if folds is not None else ""
    return f"{statistics.mean(values):.3f}{spread}{by_fold}" if values else ""


def write_table(folder: Path, records: list[VideoRecord], folds: int) -> str:
    """The table in Markdown, and how far its numbers can be trusted."""
    results: dict[str, list[dict]] = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        results.setdefault(result["variant"], []).append(result)
    groups = len({record.group for record in records})
    labels = [record.label for record in records]
    largest = max(map(labels.count, labels)) / len(labels)
    lines = [
        f"# Cross-validation on {folder.name}",
        "",
        "Written by `python benchmarks/cross_validation.py`; do not edit. "
        f"{len(records)} videos of {groups} groups, {folds} folds by group, config `videos-cpu`, pretrained without "
        "the fold, equal clips through the backbone. Share of videos judged rightly from all stages' frozen features, "
        "or after fine-tuning: mean ± standard deviation over seeds; then that over all folds of all seeds. The "
        f"largest class is {largest:.3f} of the set.",
        "",
        "| variant | seeds | " + " | ".join(PROTOCOLS) + " |",
        "|---|---|" + "---|" * len(PROTOCOLS),
    ]
    trained = {name: runs for name, runs in results.items() if name not in BASELINES}
    everything = {"random initialisation": ("random_weights", merged(trained))}
    everything |= {name: ("metrics", runs) for name, runs in trained.items()}
    for name, (key, runs) in everything.items():
        shares = [by_seed(runs, folds, protocol, key) for protocol in PROTOCOLS]
        cells = [shown(share, over_folds(runs, share, p, key)) for share, p in zip(shares, PROTOCOLS, strict=True)]
        lines.append(f"| {name} | {len(shares[0])} | " + " | ".join(cells) + " |")
    lines += ["", "| ridge classifier of | seeds | right |", "|---|---|---|"]
    for name in BASELINES:
        share = by_seed(results.get(name, []), folds, "ridge")
        cell = shown(share, over_folds(results.get(name, []), share, "ridge", "metrics"))
        lines.append(f"| {name} | {len(share)} | {cell} |")
    lines.append("")
    if {"hdc", "coupled"} <= set(results):
        differences = []
        for protocol in PROTOCOLS:
            hdc, coupled = (by_seed(results[name], folds, protocol) for name in ("hdc", "coupled"))
            common = {seed: hdc[seed] - coupled[seed] for seed in hdc if seed in coupled}
            differences += [f"{protocol} {shown(common)}"] if common else []
        lines += [f"HDC less coupled, seed by seed: {', '.join(differences)}."] if differences else []
    by_video, by_group = (0.5 / count**0.5 for count in (len(records), groups))
    lines += [
        "",
        "The set itself is a draw, which the deviation over seeds does not hold: the standard error of one share is "
        f"up to {by_video:.3f} if its {len(records)} videos are independent, and up to {by_group:.3f} if only its "
        f"{groups} groups are. So a difference of two variants is beyond doubt (two standard errors, their mistakes "
        f"taken as independent) from about {2 * 2**0.5 * by_video:.2f} on, or {2 * 2**0.5 * by_group:.2f} by groups; "
        "a smaller one is not something that this set can show.",
        "",
    ]
    table = "\n".join(lines)
    (folder / "README.md").write_text(table)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder or CSV manifest, labelled")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=list(PRESETS), default=["hdc", "coupled"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/cross-validation"), help="where runs are while they last"
    )
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    records = read_records(arguments.data)
    folder = ROOT / "docs" / "cross-validation" / arguments.data.resolve().stem

    def job(item: tuple[str, int, int]) -> None:
        file = folder / "{}-{}-{}.json".format(*item)
        if not file.exists():
            run(records, item, arguments.folds, file, arguments.runs, threads)

    judge_baselines(records, arguments.folds, arguments.seeds, folder)
    items = [
        (variant, seed, fold)
        for seed in arguments.seeds
        for fold in range(arguments.folds)
        for variant in arguments.variants
    ]
    for variant, seed, fold in in_parallel(job, items, arguments.jobs):
        print(f"done: {variant}, seed {seed}, fold {fold}", flush=True)
        write_table(folder, records, arguments.folds)
    print(write_table(folder, records, arguments.folds))


if __name__ == "__main__":
    main()
