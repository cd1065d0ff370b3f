"""Fine-tune with few labels, from a pretrained backbone and from random weights.

Command: python benchmarks/fine_tuning.py --run runs/moving-shapes      (after `hdc-keras pretrain`)
         python benchmarks/fine_tuning.py --tables-only                 (no training: the table from finished runs)
Cost:    about 15 minutes on 2 cores. It can be stopped at any time; finished fine-tunings are kept in the run.

Each published recipe is run by `hdc-keras evaluate` on moving shapes, with the label motion, 20 training videos per
class and three seeds. The table says how many of its published epochs a recipe was given.

Results go to `studies/fine-tuning.jsonl`, one line per recipe and seed, and the table to `docs/evaluation.md`.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

from study import DOCS, STUDIES, Run, Study, options, write_section

from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes
from hdc_keras.finetuning.recipes import FINE_TUNING

EPOCHS = {"finetune-rspnet": 30, "finetune-vcop": 40, "finetune-severe": 4}
LABELS_PER_CLASS = 20
NETWORKS = ("metrics", "random_weights")
STUDY = STUDIES / "fine-tuning.jsonl"


def write_motion_manifest(path: Path) -> None:
    """Write moving shapes as a manifest whose only label is the motion."""
    manifest = ensure_moving_shapes(MovingShapes())
    with manifest.open(newline="") as file, path.open("w", newline="") as written:
        writer = csv.writer(written)
        writer.writerow(["path", "label", "split"])
        for row in csv.DictReader(file):
            writer.writerow([manifest.parent / row["path"], row["label_motion"], row["split"]])


def evaluate(run: Path, manifest: Path, protocol: str, epochs: int, seeds: int) -> list[Run]:
    """Fine-tune by one recipe. Returns one result per seed."""
    settings = {"finetune_epochs": epochs, "labels_per_class": LABELS_PER_CLASS, "seeds": seeds}
    overrides = [f"evaluate.{name}={value}" for name, value in settings.items()]
    command = [Path(sys.executable).parent / "hdc-keras", "evaluate", "--run", run, "--data", manifest]
    command += ["--protocol", protocol, *options("--set", overrides)]
    subprocess.run(list(map(str, command)), check=True)
    (file,) = (run / "results").glob(f"{protocol}-motion-*.json")
    result = json.loads(file.read_text())
    commit = json.loads((run / "environment.json").read_text())["commit"]
    found: dict[int, Run] = {}
    for repeat in result["repeats"]:
        identity = {"variant": protocol, "seed": repeat["seed"]}
        line = identity | {"epochs": epochs, "labels_per_class": LABELS_PER_CLASS, "commit": commit}
        found.setdefault(repeat["seed"], line)[repeat["network"]] = {"top1": repeat["metrics"]["top1"]}
    return list(found.values())


def table(study: Study) -> str:
    """The table in Markdown: mean ± standard deviation of top-1 over seeds."""
    lines = ["| | from the pretrained backbone | from random weights |", "|---|---|---|"]
    results = study.by_variant()
    for protocol in (name for name in EPOCHS if name in results):
        runs = results[protocol]
        cells = [formatted(runs, network) for network in NETWORKS]
        epochs = f"{runs[0]['epochs']} of its {FINE_TUNING[protocol].epochs} epochs"
        lines.append(f"| `{protocol}`, {epochs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def formatted(runs: list[Run], network: str) -> str:
    """Mean ± standard deviation over seeds."""
    if "deviation" in runs[0]:  # Only the printed mean and deviation of the first study were kept.
        (run,) = runs
        return f"{run[network]['top1']:.2f} ± {run['deviation'][network]['top1']:.2f}"
    values = [run[network]["top1"] for run in runs]
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/moving-shapes"), help="pretrained run")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each recipe and network")
    parser.add_argument("--epochs", type=int, help="epochs of every recipe, for a quick trial that writes no results")
    parser.add_argument("--tables-only", action="store_true", help="write the table from finished runs; no training")
    arguments = parser.parse_args()
    study = Study(STUDY, ("variant", "seed"))
    if not arguments.tables_only:
        manifest = arguments.run / "motion.csv"
        write_motion_manifest(manifest)
        for protocol, epochs in EPOCHS.items():
            runs = evaluate(arguments.run, manifest, protocol, arguments.epochs or epochs, arguments.seeds)
            if arguments.epochs:
                print(protocol, *(formatted(runs, network) for network in NETWORKS), flush=True)
            else:
                study.replace_variant(protocol, runs)
    if not arguments.epochs:
        text = table(study)
        write_section(DOCS / "evaluation.md", study.name, text)
        print(text)


if __name__ == "__main__":
    main()
