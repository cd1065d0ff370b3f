"""`hdc-keras evaluate`."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

# The name of each network in a table, by its key in a result. The run's scores stand beside their source.
_NETWORKS = {"metrics": "", "random_weights": "random", "supervised": "supervised"}
_LEVEL = re.compile(r"P\d+")


def evaluate(
    protocol: Annotated[
        list[str],
        typer.Option(
            help="linear, linear-cvrl, linear-severe, knn, retrieval, retrieval-vcop, lowlabel, factors (needs several "
            "label columns), finetune-vcop, finetune-rspnet or finetune-severe. Repeatable."
        ),
    ],
    run: Annotated[Path | None, typer.Option(help="Run directory of a pretraining run.", show_default=False)] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a run: a Parquet file with a vector for each video, from any encoder. Needs --out.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled videos: class folders, a manifest, tar files, a data set as published or a prepared set.",
            show_default="the videos of the run, or the labels in the file of --features",
        ),
    ] = None,
    splits: Annotated[
        str,
        typer.Option(
            help="own: the split in the config. all: the three official splits of UCF101 or HMDB51, and their mean."
        ),
    ] = "own",
    checkpoint: Annotated[str, typer.Option(help="Checkpoint to use: newest or best.")] = "newest",
    weights: Annotated[
        str, typer.Option(help="raw, ema (moving averages of train.ema), or auto: ema if the run keeps them.")
    ] = "auto",
    supervised: Annotated[
        Path | None,
        typer.Option(help="Also evaluate torchvision's Kinetics weights: a local .pth file of r3d_18 or r2plus1d_18."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results, features and fine-tunings.", show_default="the run directory"),
    ] = None,
    part: Annotated[
        str,
        typer.Option(help="I/N: extract the features of the I-th of N parts of the videos only, and evaluate nothing."),
    ] = "1/1",
    all_sources: Annotated[
        bool, typer.Option("--all", help="Print the scores of every level and embedding, not only the main ones.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a config key, as in evaluate.clips=5. Repeatable."),
    ] = None,
) -> None:
    """Measure what a run has learned, in comparison with the same network with random weights; or judge vectors of
    videos from any encoder.

    Most protocols train a probe on the frozen features of the training videos and score it on the test videos.
    Features are averaged over evenly spaced clips. If the set has no splits, the share `data.holdout` of each class is
    held out, and videos of one group stay on the same side.

    `factors` needs videos with several label columns. It measures which label can be predicted from which task and
    level, and draws a bar chart. The `finetune-` protocols train the whole network with labels, as the named
    publication does, and print the settings that differ from it.

    After an interruption, run the same command again to resume. Several processes that run the same command divide the
    extraction of features among themselves; --part divides it in advance. docs/evaluation.md describes the protocols
    and their sources.

    The file of --features has a column `video_id` or `path`, one or more columns of vectors, and maybe `label`, `split`
    and `group`. `hdc-keras embed` writes such files. `compare` puts its results beside those of runs.

    Examples:
      hdc-keras evaluate --run runs/moving-shapes --protocol linear --protocol knn
      hdc-keras evaluate --run runs/moving-shapes --protocol factors
      hdc-keras evaluate --run runs/mine --data labelled.csv --protocol retrieval
      hdc-keras evaluate --run runs/mine --data UCF-101 --splits all \\
        --protocol finetune-rspnet --set evaluate.seeds=3
      hdc-keras evaluate --run runs/mine --protocol linear-cvrl \\
        --set evaluate.crops=3
      hdc-keras evaluate --features videomae.parquet --data labelled.csv \\
        --protocol linear --protocol knn --out judged/videomae
    """
    from hdc_keras.config import load_experiment
    from hdc_keras.data.preparing import Part
    from hdc_keras.errors import ConfigError
    from hdc_keras.evaluation.checks import require_labelled, require_output, require_usable
    from hdc_keras.evaluation.splits import load_splits
    from hdc_keras.runs.checkpoints import is_best, require_weights
    from hdc_keras.runs.directory import RunDirectory

    from .console import NamedBars, console, print_notes, print_parts, progress_bar, start_backend
    from .experiments import other_videos

    if features is not None:
        only_of_runs = {
            "--run": run is not None,
            "--supervised": supervised is not None,
            "--checkpoint": checkpoint != "newest",
            "--weights": weights != "auto",
            "--part": part != "1/1",
        }
        _evaluate_vectors(features, protocol, data, splits, out, set_ or [], all_sources, only_of_runs)
        return
    if run is None:
        raise ConfigError("evaluate needs --run RUN, or --features FILE.parquet for vectors of any encoder.")
    best = is_best(checkpoint)
    share = Part.parse(part)
    directory = RunDirectory(run)
    directory.experiment()
    experiment = load_experiment(directory.config_file, set_, literals=other_videos(data))

    require_weights(weights, experiment)
    of_labels = str(supervised) if supervised else None
    require_usable(directory, experiment, protocol, of_labels, best, share)
    require_output(directory, out)
    with progress_bar() as bar:
        bars = NamedBars(bar)
        videos, notes = load_splits(experiment, splits, partial(bars, "rendering moving shapes"), directory)
        require_labelled(experiment, videos, protocol)
        start_backend()
        from hdc_keras.evaluation.job import evaluate as evaluate_run

        results = evaluate_run(directory, experiment, videos, protocol, bars, of_labels, best, out, share, weights)
    print_notes(notes)
    if share.of > 1:
        console.print(f"Part {part} is extracted. Once all parts are, run the command without --part to evaluate.")
        return
    for result in results.values():
        _print_result(result, all_sources)
    print_parts("Results are in ", (str((out or directory.path) / "results"), "bold"))


def _evaluate_vectors(
    features: Path,
    protocols: list[str],
    data: str | None,
    splits: str,
    out: Path | None,
    overrides: list[str],
    all_sources: bool,
    only_of_runs: dict[str, bool],
) -> None:
    """`evaluate --features`."""
    from hdc_keras.config import load_experiment
    from hdc_keras.errors import ConfigError
    from hdc_keras.evaluation.splits import load_splits
    from hdc_keras.evaluation.vectors import evaluate_vectors, own_splits, require_judged_by_vectors
    from hdc_keras.features.vector_table import read_vector_table

    from .console import NamedBars, print_notes, print_parts, progress_bar
    from .experiments import find_config, other_videos

    for option, is_given in only_of_runs.items():
        if is_given:
            raise ConfigError(f"{option} is about runs. Leave it out, or leave out --features.")
    if out is None:
        raise ConfigError("--features needs --out DIR, the folder for the results, which `compare` can read.")
    if data is None and splits != "own":
        raise ConfigError(f"--splits {splits}: expected own, or all with --data and UCF101 or HMDB51.")
    require_judged_by_vectors(protocols, out)
    experiment = load_experiment(find_config("videos"), overrides, literals=other_videos(data))
    table = read_vector_table(features)
    notes: list[str] = []
    if data is None:
        # Tables of several encoders have different names, and may hold the same videos.
        videos, dataset = own_splits(table, experiment), str(table.made_from.get("dataset") or "own-labels")
    else:
        (videos, notes), dataset = load_splits(experiment, splits), str(experiment.data.path)
    with progress_bar() as bar:
        results = evaluate_vectors(table, experiment, videos, dataset, protocols, out, NamedBars(bar))
    print_notes(notes)
    for result in results.values():
        _print_result(result, all_sources)
    print_parts("Results are in ", (str(out / "results"), "bold"))


def _print_result(result: dict[str, Any], all_sources: bool) -> None:
    from hdc_keras.probes.registry import PROBES

    from .console import console

    # The decoupling meter is about every source.
    console.print(_table(result, all_sources or result["protocol"] == "factors"))
    if not all_sources and result["protocol"] != "factors" and any(len(s) > 1 for s in result["metrics"].values()):
        features = "the last level" if PROBES[result["protocol"]].uses_last_level else "all levels joined"
        console.print(
            f"Shown are features ({features}) and the best level. It is chosen by its own score on the test videos, so "
            "that score is optimistic; --all shows every source."
        )
    for line in _mean_class_accuracies(result):
        console.print(line, soft_wrap=True)
    console.print(f"Source: {result['source']}", soft_wrap=True)
    if result["reduced"]:
        differences = [
            f"{name} {_short(used)} instead of {_short(published)}"
            for name, (published, used) in result["reduced"].items()
        ]
        console.print(f"Differs from the published protocol: {'; '.join(differences)}", soft_wrap=True)
    for column, classes in result["untrained_classes"].items():
        named = ", ".join(f"{label} ({count})" for label, count in classes.items())
        console.print(
            f"Classes of {column} without training videos, which no protocol can predict (test videos): {named}",
            soft_wrap=True,
        )
    for name, seen in result["seen_in_pretraining"].items():
        where = f" of split {name}" if len(result["seen_in_pretraining"]) > 1 else ""
        if seen is None:
            console.print("Whether pretraining saw the test videos is unknown: the run keeps no table of its videos.")
            break
        if seen["test_videos"]:
            console.print(
                f"{seen['test_videos']} of {seen['of']} test videos{where} were in pretraining.",
                style="yellow",
                soft_wrap=True,
            )
    counts = result["counts"]
    console.print(f"{counts['decoded']} of {counts['asked']} videos evaluated, {len(counts['failed'])} failed")
    for path, cause in counts["failed"].items():
        console.print(f"  {path}: {cause}", soft_wrap=True)


def _table(result: dict[str, Any], all_sources: bool) -> Any:
    """Metrics by label column and source: a row for the run, and below it one for each network to compare with."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{result['protocol']} (version {result['version']}) on {result['dataset']}, {result['split']['test']} "
        f"test videos" + (f", {result['views']} views" if "views" in result else ""),
        caption=(f"mean ± standard deviation over {_repetitions(result)}; " if result["deviation"] else "")
        + ("random: the same network with random weights" if "random_weights" in result else "")
        + ("; supervised: with supervised weights" if "supervised" in result else "")
        + ("; chance: " if "random_weights" in result else "chance: ")
        + ", ".join(f"{column} {value:.3f}" for column, value in result["chance"].items()),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("label, from", overflow="fold")
    found = (name for sources in result["metrics"].values() for metrics in sources.values() for name in metrics)
    # Label columns may have different metrics: there is no top5 with five classes or fewer.
    names = [name for name in dict.fromkeys(found) if name != "l2" and not name.startswith("mean_class_accuracy")]
    for name in names:
        table.add_column(name, justify="right", overflow="fold", min_width=len("±0.123"))
    for column, sources in result["metrics"].items():
        table.add_row(column, style="bold")
        for source in list(sources) if all_sources else _main_sources(sources):
            for network, title in _NETWORKS.items():
                metrics = result.get(network, {}).get(column, {}).get(source)
                if metrics is None:
                    continue
                deviations = result["deviation"].get(network, {}).get(column, {}).get(source, {})
                cells = [
                    "" if name not in metrics else f"{metrics[name]:.3f}" + _plus_minus(deviations.get(name))
                    for name in names
                ]
                is_run = network == "metrics"
                table.add_row(source if is_run else f"  {title}", *cells, style="" if is_run else "dim")
        table.add_section()
    return table


def _main_sources(sources: dict[str, dict[str, float]]) -> list[str]:
    """The first source, which stands for the whole network, and the best single level by its first metric."""
    first = next(iter(sources))
    levels = [source for source in sources if _LEVEL.fullmatch(source)]
    best = max(levels, key=lambda source: next(iter(sources[source].values())), default=None)
    return [first, *([best] if best not in (None, first) else [])]


def _plus_minus(deviation: float | None) -> str:
    return "" if deviation is None else f" ±{deviation:.3f}"


def _mean_class_accuracies(result: dict[str, Any]) -> list[str]:
    """A line for each label column: the mean class accuracy of the first source, which stands for the whole network.

    They are not in the table, which would not fit a terminal of 80 columns.
    """
    lines = []
    for column, sources in result["metrics"].items():
        source, metrics = next(iter(sources.items()))
        random = result.get("random_weights", {}).get(column, {}).get(source, {})
        found = [
            f"{value:.3f}"
            + (f" ({random[name]:.3f})" if name in random else "")
            + name.removeprefix("mean_class_accuracy")
            for name, value in metrics.items()
            if name.startswith("mean_class_accuracy")
        ]
        if found:
            lines.append(f"mean class accuracy, {column} from {source}: {'; '.join(found)}")
    return lines


def _repetitions(result: dict[str, Any]) -> str:
    counts = {"split": len(result["splits"]), "seed": len(result["seeds"])}
    return " and ".join(f"{count} {what}s" for what, count in counts.items() if count > 1)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
