"""The study: HDC and its ablations on moving shapes, at equal compute, over several seeds.

Command: python benchmarks/ablation.py [--seeds 0 1 2] [--variants hdc coupled ...]
Cost: about 4 minutes a run on 2 cores, two runs at a time. Stop it at any time: what is finished is not done again.

Each run is `hdc-keras pretrain` and `hdc-keras evaluate --protocol factors`. Compute is counted in clips through the
backbone: all variants get as many as HDC has in its config, those with fewer views of a video in more epochs. A run a
core with one thread each uses the machine better than all cores on one small network. A finished run leaves
`docs/ablation/{variant}-{seed}.json`; from all of these the table `docs/ablation/README.md` and the figure
`docs/ablation/ablation.png` are made anew after every run. On a GPU, larger, without TensorFlow:

  KERAS_BACKEND=jax python benchmarks/ablation.py --jobs 1 --out docs/ablation-r3d18 --set model.backbone=r3d18 ...
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from study import equal_compute, in_parallel, keep, train_and_judge

from hdc_keras.config import load_experiment
from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes

# What each variant changes in the config `moving-shapes`, and what it asks.
VARIANTS: dict[str, tuple[str, list[str], str]] = {
    "hdc": ("hdc", [], "decoupled: spatial task at P2, P3, temporal at P4, P5; measured weights"),
    "coupled": ("coupled", [], "one task, positives differ in both"),
    "coupled-no-fading": ("coupled", ["views.fade_static=0"], "coupled without fading what stands still"),
    "spatial": ("spatial", [], "spatial task alone, every level"),
    "temporal": ("temporal", [], "temporal task alone, every level"),
    "every-level": ("hdc-every-level", [], "both tasks at every level"),
    "top-level": ("hdc-top-level", [], "both tasks, last stage only"),
    "uniform": ("hdc-uniform", [], "HDC with equal weights"),
    "fixed": ("hdc", ["contrast.weighting=fixed"], "HDC with weights 0.25, 0.5, 0.75, 1 from P2 to P5"),
    "no-fading": ("hdc", ["views.fade_static=0"], "HDC without fading"),
    "same-colours": ("hdc", ["views.own_colour=0"], "HDC whose spatial pair shares its colours"),
    "reversed": ("hdc", ["views.temporal_negatives=[reversed]"], "HDC with reversed temporal negatives"),
    "shifted": ("hdc", ["views.temporal_negatives=[shifted]"], "HDC with shifted temporal negatives"),
}
# Rows of the figure: what features are judged, by the name that `evaluate` gives it.
SOURCES = ("features", "spatial embeddings", "temporal embeddings", "coupled embeddings")
FACTORS = ("appearance", "motion")
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "ablation"
CONFIG = ROOT / "configs" / "moving-shapes.yaml"
_MARKERS = "sov^D<P>X*hd"


def run(variant: str, seed: int, common: list[str], folder: Path, runs: Path, threads: int) -> None:
    """Pretrain and evaluate one variant with one seed, and keep the result."""
    preset, changes, _ = VARIANTS[variant]
    videos = 36 * load_experiment(CONFIG, common).data.shapes_per_pair[0]
    epochs, clips = equal_compute(CONFIG, common, changes, preset, videos)
    fixed = [f"seed={seed}", f"train.epochs={epochs}", "train.knn_every=0", "train.checkpoint_every=1000"]
    overrides = [*common, *changes, *fixed]
    results, made_with = train_and_judge(runs / f"{variant}-{seed}", CONFIG, preset, overrides, ["factors"], threads)
    kept = {
        "variant": variant,
        "seed": seed,
        "clips": clips,
        "overrides": overrides,
        "commit": made_with["commit"],
        "metrics": results["factors"]["metrics"],
        "random_weights": results["factors"]["random_weights"],
    }
    keep(folder / f"{variant}-{seed}.json", kept)


def finished(folder: Path) -> dict[str, list[dict]]:
    """Results by variant, in the order of `VARIANTS`; random weights come first."""
    results: dict[str, list[dict]] = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        results.setdefault(result["variant"], []).append(result)
    ordered = {name: results[name] for name in VARIANTS if name in results}
    by_seed = {result["seed"]: {"metrics": result["random_weights"]} for runs in ordered.values() for result in runs}
    return {"random weights": list(by_seed.values())} | ordered


def spread(results: list[dict], factor: str, source: str) -> tuple[float, float | None] | None:
    """Mean and standard deviation of the top-1 over seeds; `None` where the variant has no such source."""
    values = [r["metrics"][factor][source]["top1"] for r in results if source in r["metrics"][factor]]
    if not values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def write_table(results: dict[str, list[dict]], common: list[str]) -> str:
    """The table in Markdown: appearance / motion by variant and source."""
    clips = sorted({run["clips"] for runs in results.values() for run in runs if "clips" in run})
    lines = [
        "# Ablation study",
        "",
        f"Written by `python benchmarks/ablation.py{''.join(f' --set {value}' for value in common)}`; do not edit. "
        "Moving shapes, config `moving-shapes`, "
        f"{' and '.join(f'{count:,}' for count in clips)} clips through the backbone for every variant. Linear probe "
        "on 216 held-out videos, top-1, appearance / motion, mean ± standard deviation over seeds; chance is 0.17.",
        "",
        "| variant | what it is | seeds | " + " | ".join(SOURCES) + " |",
        "|---|---|---|" + "---|" * len(SOURCES),
    ]
    for name, runs in results.items():
        cells = []
        for source in SOURCES:
            both = [spread(runs, factor, source) for factor in FACTORS]
            cells.append(" / ".join(shown(value) for value in both) if all(both) else "")
        about = VARIANTS[name][2] if name in VARIANTS else "untrained; its heads are those of the variant"
        lines.append(f"| {name} | {about} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "![The table as a figure](ablation.png)", ""])


def shown(value: tuple[float, float | None]) -> str:
    mean, deviation = value
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def draw(results: dict[str, list[dict]], path: Path) -> None:
    """Appearance against motion, read from the features: a cross a variant, its arms the standard deviation."""
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    for number, (name, runs) in enumerate(results.items()):
        (x, dx), (y, dy) = (spread(runs, factor, "features") for factor in FACTORS)
        marker = _MARKERS[number % len(_MARKERS)]
        axes.errorbar(x, y, yerr=dy, xerr=dx, fmt=marker, color=f"C{number % 10}", capsize=3, label=name)
    axes.set(xlabel="appearance, top-1", ylabel="motion, top-1", title="Linear probe of all stages' features")
    axes.set(xlim=(0.15, 1.02), ylim=(0.15, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--set", action="append", default=[], help="a key for all variants, as in model.backbone=r3d18")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where results, table and figure are kept")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where runs are kept while they last")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)

    def job(pair: tuple[str, int]) -> None:
        if not (arguments.out / f"{pair[0]}-{pair[1]}.json").exists():
            run(*pair, arguments.set, arguments.out, arguments.runs, threads)

    ensure_moving_shapes(MovingShapes(*load_experiment(CONFIG, arguments.set).data.shapes_per_pair))
    pairs = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants]
    for variant, seed in in_parallel(job, pairs, arguments.jobs):
        print(f"done: {variant}, seed {seed}", flush=True)
        results = finished(arguments.out)
        (arguments.out / "README.md").write_text(write_table(results, arguments.set))
        draw(results, arguments.out / "ablation.png")
    print(write_table(finished(arguments.out), arguments.set))


if __name__ == "__main__":
    main()
