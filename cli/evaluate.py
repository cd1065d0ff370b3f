"""`hdc-keras evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    run: Annotated[Path, typer.Option(help="Run directory of a pretraining run.")],
    protocol: Annotated[
        list[str],
        typer.Option(help="linear (probe), knn, retrieval or factors (several label columns). Repeatable."),
    ],
    data: Annotated[
        str | None, typer.Option(help="Other labelled videos than the run's: folder or CSV manifest.")
    ] = None,
    supervised: Annotated[
        Path | None,
        typer.Option(help="Judge torchvision's Kinetics weights beside it: a local .pth of r3d_18 or r2plus1d_18."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as in evaluate.clips=5. Repeatable.")
    ] = None,
) -> None:
    """Measure what a run's frozen features know, beside the same network with random weights.

    Features are averaged over evenly spaced clips. Training videos fit the judge, test videos are judged; where the set
    has no splits, the share `data.holdout` of each class is held out, group by group. `factors` is the decoupling
    meter: for videos with several label columns, which label can be read from which task and level, with a bar chart.

    Examples:
      hdc-keras evaluate --run runs/moving-shapes --protocol linear --protocol knn
      hdc-keras evaluate --run runs/moving-shapes --protocol factors
      hdc-keras evaluate --run runs/mine --data labelled.csv --protocol retrieval
    """
    from hdc_keras_cli.console import NamedBars, console, progress_bar, start_backend
    from hdc_keras_cli.experiments import absolute

    from hdc_keras.config import load_experiment
    from hdc_keras.training.run_directory import RunDirectory

    directory = RunDirectory(run)
    directory.experiment()
    overrides = [*([f"data.path={absolute(data)}"] if data else []), *(set_ or [])]
    experiment = load_experiment(directory.config_file, overrides)

    start_backend()
    from hdc_keras.evaluation.job import evaluate as evaluate_run
    from hdc_keras.training.run import load_videos

    with progress_bar() as bar:
        bars = NamedBars(bar)
        records, notes = load_videos(experiment, lambda done, total: bars("rendering moving shapes", done, total))
        results = evaluate_run(directory, experiment, records, protocol, bars, str(supervised) if supervised else None)
    console.print("".join(f"{note}\n" for note in notes), end="", markup=False, highlight=False)
    for result in results.values():
        _print_result(result)
        counts = result["counts"]
        console.print(
            f"{counts['decoded']} of {counts['asked']} videos evaluated, {len(counts['failed'])} failed",
            end="",
        )
        console.print("".join(f"\n  {path}: {cause}" for path, cause in counts["failed"].items()), soft_wrap=True)
    console.print(f"Results are in [bold]{directory.path / 'results'}[/]")


def _print_result(result: dict[str, Any]) -> None:
    from hdc_keras_cli.console import console
    from rich.table import Table

    table = Table(
        title=f"{result['protocol']} on {result['dataset']}, {result['split']['test']} test videos",
        caption="in brackets: the same network with random weights"
        + (", and with supervised ones" if "supervised" in result else "")
        + "; chance: "
        + ", ".join(f"{column} {value:.3f}" for column, value in result["chance"].items()),
    )
    table.add_column("label")
    table.add_column("from", no_wrap=True)
    names = [name for name in next(iter(next(iter(result["metrics"].values())).values())) if name != "l2"]
    for name in names:
        table.add_column(name, justify="right")
    for column, sources in result["metrics"].items():
        for source, metrics in sources.items():
            others = [result[key][column].get(source) for key in ("random_weights", "supervised") if key in result]
            cells = [
                f"{metrics[name]:.3f} [dim]({', '.join(f'{o[name]:.3f}' for o in others if o)})[/]" for name in names
            ]
            table.add_row(column, source, *cells)
        table.add_section()
    console.print(table)
