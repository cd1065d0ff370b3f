"""Compare HDC with its ablations on moving shapes, at equal compute, over several seeds.

Command: python benchmarks/ablation.py [--seeds 0 1 2] [--variants hdc coupled ...]
         python benchmarks/ablation.py --tables-only      (no training: tables and figure from finished runs)
Cost:    about 4 minutes a run on 2 cores, two runs at a time. It can be stopped at any time; finished runs are kept.

Each run is `hdc-keras pretrain` followed by `hdc-keras evaluate --protocol factors`. Compute is counted in clips
through the backbone: every variant gets as many clips as HDC gets in its config, so variants with fewer views per video
train for more epochs. By default, each core trains one variant with one thread, which for a small network is faster
than training one variant on all cores.

Results go to `studies/ablation.jsonl`, one line per run. After every run, the tables in `docs/ablation.md` and README
and the figure `docs/images/ablation.png` are written again. A larger study, on a GPU and without TensorFlow:

  KERAS_BACKEND=jax python benchmarks/ablation.py --jobs 1 --study studies/ablation-r3d18.jsonl \\
      --set model.backbone=r3d18 ...
"""

import argparse
import os
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from study import DOCS, ROOT, STUDIES, Run, Study, equal_compute, in_parallel, train_and_evaluate, write_section

from hdc_keras.config import load_experiment
from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes

# For each variant: its preset, what else it changes in the config `moving-shapes`, and its description.
VARIANTS: dict[str, tuple[str, list[str], str]] = {
    "hdc": ("hdc", [], "decoupled: spatial task at P2, P3, temporal task at P4, P5; measured weights"),
    "coupled": ("coupled", [], "one task; its positives differ in time and augmentation"),
    "coupled-no-fading": ("coupled", ["views.fade_static=0"], "coupled, without fading static content"),
    "spatial": ("spatial", [], "spatial task alone, at every level"),
    "temporal": ("temporal", [], "temporal task alone, at every level"),
    "every-level": ("hdc-every-level", [], "both tasks at every level"),
    "top-level": ("hdc-top-level", [], "both tasks, last stage only"),
    "uniform": ("hdc-uniform", [], "HDC with equal weights"),
    "fixed": ("hdc", ["contrast.weighting=fixed"], "HDC with weights 0.25, 0.5, 0.75, 1 from P2 to P5"),
    "no-fading": ("hdc", ["views.fade_static=0"], "HDC without fading"),
    "same-colours": ("hdc", ["views.own_colour=0"], "HDC whose spatial positive keeps the anchor's colours"),
    "reversed": ("hdc", ["views.temporal_negatives=[reversed]"], "HDC with reversed temporal negatives"),
    "shifted": ("hdc", ["views.temporal_negatives=[shifted]"], "HDC with shifted temporal negatives"),
}
RANDOM_WEIGHTS = "random weights"
# Rows of README's short table.
SUMMARY = {
    "hdc": "HDC",
    "coupled": "coupled contrast, same views",
    "coupled-no-fading": "coupled contrast, without fading static content",
    "every-level": "both tasks at every stage",
    RANDOM_WEIGHTS: "random weights",
}
# Columns of the table: which features are probed, by the names that `evaluate` gives them.
SOURCES = ("features", "spatial embeddings", "temporal embeddings", "coupled embeddings")
FACTORS = ("appearance", "motion")
CONFIG = ROOT / "configs" / "moving-shapes.yaml"
STUDY = STUDIES / "ablation.jsonl"
_MARKERS = "sov^D<P>X*hd"


def run(variant: str, seed: int, common: list[str], study: Study, runs: Path, threads: int) -> None:
    """Pretrain and evaluate one variant with one seed, and add the result to the study."""
    preset, changes, _ = VARIANTS[variant]
    videos = 36 * load_experiment(CONFIG, common).data.shapes_per_pair[0]
    length, clips = equal_compute(CONFIG, common, changes, preset, videos)
    fixed = [f"seed={seed}", length, "train.knn_every=0", "train.checkpoint_every=1000"]
    overrides = [*common, *changes, *fixed]
    directory = runs / f"{variant}-{seed}"
    results, environment = train_and_evaluate(directory, CONFIG, preset, overrides, ["factors"], threads)
    study.add(
        {
            "variant": variant,
            "seed": seed,
            "clips": clips,
            "overrides": overrides,
            "commit": environment["commit"],
            "metrics": results["factors"]["metrics"],
            "random_weights": results["factors"]["random_weights"],
        }
    )


def ordered_results(study: Study) -> dict[str, list[Run]]:
    """Runs by variant, in the order of `VARIANTS`. Random weights come first."""
    results = study.by_variant()
    ordered = {name: results[name] for name in VARIANTS if name in results}
    # Each run also evaluates random weights. They depend only on the seed, so one result per seed is kept.
    by_seed = {run["seed"]: {"metrics": run["random_weights"]} for runs in ordered.values() for run in runs}
    return {RANDOM_WEIGHTS: list(by_seed.values())} | ordered


def spread(results: list[Run], factor: str, source: str) -> tuple[float, float | None] | None:
    """Mean and standard deviation of top-1 over seeds; `None` if the variant has no such source."""
    values = [r["metrics"][factor][source]["top1"] for r in results if source in r["metrics"][factor]]
    if not values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def formatted(value: tuple[float, float | None] | None) -> str:
    """Mean ± standard deviation."""
    if value is None:
        return ""
    mean, deviation = value
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def table(results: dict[str, list[Run]], common: list[str], figure: str) -> str:
    """The full table in Markdown: appearance / motion by variant and source."""
    clips = sorted({run["clips"] for runs in results.values() for run in runs if "clips" in run})
    changes = "".join(f" `--set {value}`" for value in common)
    lines = [
        f"Moving shapes, config `moving-shapes`{changes}, {' and '.join(f'{count:,}' for count in clips)} clips "
        "through the backbone for every variant. Top-1 of a linear probe on 216 held-out videos, appearance / motion, "
        "mean ± standard deviation over seeds. Chance is 0.17.",
        "",
        "| variant | what it is | seeds | " + " | ".join(SOURCES) + " |",
        "|---|---|---|" + "---|" * len(SOURCES),
    ]
    for name, runs in results.items():
        cells = []
        for source in SOURCES:
            both = [spread(runs, factor, source) for factor in FACTORS]
            cells.append(" / ".join(map(formatted, both)) if all(both) else "")
        about = VARIANTS[name][2] if name in VARIANTS else "untrained; the heads are those of the variant"
        lines.append(f"| {name} | {about} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"![Motion against appearance for every variant]({figure})"])


def summary(results: dict[str, list[Run]]) -> str:
    """README's short table: features of the variants in `SUMMARY`."""
    lines = ["| | appearance | motion |", "|---|---|---|"]
    for name, label in SUMMARY.items():
        if name in results:
            cells = [formatted(spread(results[name], factor, "features")) for factor in FACTORS]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, list[Run]], path: Path) -> None:
    """Motion against appearance, read from the features. Arms of a cross are the standard deviation."""
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


def write_docs(study: Study, common: list[str]) -> str:
    """Write the study's tables and its figure to the docs. Returns the full table."""
    results = ordered_results(study)
    figure = DOCS / "images" / f"{study.name}.png"
    draw(results, figure)
    text = table(results, common, f"images/{figure.name}")
    write_section(DOCS / "ablation.md", study.name, text)
    if study.file == STUDY:
        write_section(ROOT / "README.md", f"{study.name}-summary", summary(results))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of each variant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument(
        "--set", action="append", default=[], help="change a key for all variants, as in model.backbone=r3d18"
    )
    parser.add_argument("--study", type=Path, default=STUDY, help="JSONL file of results")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folder for unfinished runs")
    parser.add_argument(
        "--tables-only", action="store_true", help="write tables and figure from finished runs; no training"
    )
    arguments = parser.parse_args()
    study = Study(arguments.study.resolve(), ("variant", "seed"))
    if not arguments.tables_only:
        arguments.runs.mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)

        def job(pair: tuple[str, int]) -> None:
            if not study.has(*pair):
                run(*pair, arguments.set, study, arguments.runs, threads)

        ensure_moving_shapes(MovingShapes(*load_experiment(CONFIG, arguments.set).data.shapes_per_pair))
        pairs = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants]
        for variant, seed in in_parallel(job, pairs, arguments.jobs):
            print(f"done: {variant}, seed {seed}", flush=True)
            write_docs(study, arguments.set)
    if not study.runs():
        parser.error(f"{arguments.study} holds no runs")
    print(write_docs(study, arguments.set))


if __name__ == "__main__":
    main()
