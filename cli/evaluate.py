"""`hdc-keras evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    run: Annotated[Path, typer.Option(help="Run directory of a pretraining run.")],
    protocol: Annotated[
        list[str],
        typer.Option(
            help="linear, linear-cvrl, linear-severe, knn, retrieval, lowlabel, factors (several label columns), "
            "finetune-vcop, finetune-rspnet or finetune-severe. Repeatable."
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Other labelled videos than the run's: folder or CSV manifest.")
    ] = None,
    splits: Annotated[
        str, typer.Option(help="own, or all: the three official splits of UCF101 and HMDB51, and their mean.")
    ] = "own",
    checkpoint: Annotated[str, typer.Option(help="newest or best.")] = "newest",
    supervised: Annotated[
        Path | None,
        typer.Option(help="Judge torchvision's Kinetics weights beside it: a local .pth of r3d_18 or r2plus1d_18."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as in evaluate.clips=5. Repeatable.")
    ] = None,
) -> None:
    """Measure what a run has learned, beside the same network with random weights.

    Features are averaged over evenly spaced clips. Training videos fit the judge, test videos are judged; where the set
    has no splits, the share `data.holdout` of each class is held out, group by group. `factors` is the decoupling
    meter: for videos with several label columns, which label can be read from which task and level, with a bar chart.
    finetune-... trains the whole network with labels, as the publication of that name does; what differs from it is
    said. Stopped, the same command goes on where it was. docs/evaluation.md lists protocols and their sources.

    Examples:
      hdc-keras evaluate --run runs/moving-shapes --protocol linear --protocol knn
      hdc-keras evaluate --run runs/moving-shapes --protocol factors
      hdc-keras evaluate --run runs/mine --data labelled.csv --protocol retrieval
      hdc-keras evaluate --run runs/mine --data UCF-101 --splits all --protocol finetune-rspnet --set evaluate.seeds=3
      hdc-keras evaluate --run runs/mine --protocol linear-cvrl --set evaluate.crops=3
    """
    from hdc_keras.config import load_experiment
    from hdc_keras.errors import ConfigError
    from hdc_keras.runs.directory import RunDirectory

    from .console import NamedBars, console, progress_bar, start_backend
    from .experiments import other_videos

    if checkpoint not in ("newest", "best"):
        raise ConfigError(f"--checkpoint {checkpoint}: expected newest or best.")
    directory = RunDirectory(run)
    directory.experiment()
    experiment = load_experiment(directory.config_file, [*other_videos(data), *(set_ or [])])

    start_backend()
    from hdc_keras.evaluation.job import evaluate as evaluate_run
    from hdc_keras.evaluation.job import load_splits
    from hdc_keras.evaluation.protocols import require_known

    require_known(protocol)  # before any video is read
    with progress_bar() as bar:
        bars = NamedBars(bar)
        videos, notes = load_splits(
            experiment, splits, lambda done, total: bars("rendering moving shapes", done, total)
        )
        weights = str(supervised) if supervised else None
        results = evaluate_run(directory, experiment, videos, protocol, bars, weights, checkpoint == "best")
    console.print("".join(f"{note}\n" for note in notes), end="", markup=False, highlight=False)
    for result in results.values():
        _print_result(result)
        if result["reduced"]:
            differences = [
                f"{name} {_short(used)} for {_short(own)}" for name, (own, used) in result["reduced"].items()
            ]
            console.print(f"Not as published: {', '.join(differences)}", soft_wrap=True, markup=False)
        counts = result["counts"]
        console.print(
            f"{counts['decoded']} of {counts['asked']} videos evaluated, {len(counts['failed'])} failed",
            end="",
        )
        console.print("".join(f"\n  {path}: {cause}" for path, cause in counts["failed"].items()), soft_wrap=True)
    console.print(f"Results are in [bold]{directory.path / 'results'}[/]")


def _print_result(result: dict[str, Any]) -> None:
    from rich.table import Table

    from .console import console

    table = Table(
        title=f"{result['protocol']} (version {result['version']}) on {result['dataset']}, {result['split']['test']} "
        f"test videos, {result['views']} views",
        caption=(f"mean ± standard deviation of {_times(result)}; " if result["deviation"] else "")
        + "in brackets: the same network with random weights"
        + (", and with supervised ones" if "supervised" in result else "")
        + "; chance: "
        + ", ".join(f"{column} {value:.3f}" for column, value in result["chance"].items()),
    )
    table.add_column("label")
    table.add_column("from", no_wrap=True)
    names = [name for name in next(iter(next(iter(result["metrics"].values())).values())) if name != "l2"]
    for name in names:
        table.add_column(name, justify="right")
    deviations = result["deviation"]
    for column, sources in result["metrics"].items():
        for source in sources:
            cells = []
            for name in names:
                shown = []
                for key in ("metrics", "random_weights", "supervised"):
                    value = result.get(key, {}).get(column, {}).get(source, {}).get(name)
                    spread = deviations.get(key, {}).get(column, {}).get(source, {}).get(name)
                    if value is not None:
                        shown.append(f"{value:.3f}" + (f" ± {spread:.3f}" if spread is not None else ""))
                cells.append(f"{shown[0]} [dim]({', '.join(shown[1:])})[/]")
            table.add_row(column, source, *cells)
        table.add_section()
    console.print(table)


def _times(result: dict[str, Any]) -> str:
    counted = {"split": len(result["splits"]), "seed": len(result["seeds"])}
    return " and ".join(f"{count} {what}s" for what, count in counted.items() if count > 1)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
