"""`hdc-keras finetune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hdc_keras.config import Experiment
    from hdc_keras.data.records import VideoRecord
    from hdc_keras.model import HDC
    from hdc_keras.runs.directory import RunDirectory

# The value of --run for random weights.
_NO_RUN = "none"
_METHODS = ("auto", "frozen", "whole")


def finetune(
    run: Annotated[
        str, typer.Option(help="Run directory of a pretraining run; none trains from random weights, to compare with.")
    ],
    data: Annotated[str, typer.Option(help="Labelled videos: class folders, a manifest, tar files or a prepared set.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the classifier.", show_default="RUN/classifier-DATA")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="The label column to predict, if the videos have several.", show_default="the only one"),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="frozen (a linear classifier on the features as they are), whole (train the whole network too), or "
            "auto: what does better on training videos held out."
        ),
    ] = "auto",
    config: Annotated[
        str | None,
        typer.Option(
            help="With --run none: the config of the network and its clips.", show_default="chosen as in pretrain"
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint to use: newest or best.")] = "newest",
    weights: Annotated[
        str, typer.Option(help="raw, ema (moving averages of train.ema), or auto: ema if the run keeps them.")
    ] = "auto",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a config key, as in evaluate.labels_per_class=10. Repeatable."),
    ] = None,
) -> None:
    """Make a classifier of videos from a pretrained network and a few labelled videos.

    Test videos are those of the set's split `test`, or the share `data.holdout` of each class (a quarter). Videos of
    one group (of one person, or cut from one recording) stay on one side. They are used for the score only, never for
    training or choice. A fifth of the other videos is held out to choose by.

    The folder holds the network (classifier.keras), what is known about it (classifier.json), its answer for each test
    video, and a page, report.html. `predict` applies it to videos, and `export --model` writes it for other runtimes.

    After an interruption, run the same command again to resume.

    Examples:
      hdc-keras finetune --run runs/mine --data labelled.csv --out models/strokes
      hdc-keras finetune --run runs/mine --data labelled.csv --out models/ten \\
        --set evaluate.labels_per_class=10
      hdc-keras finetune --run none --data labelled.csv --out models/scratch
      hdc-keras predict --model models/strokes --data videos --out named.csv
    """
    from hdc_keras.classification.directory import ClassifierDirectory
    from hdc_keras.config import load_experiment
    from hdc_keras.data.from_experiment import load_videos
    from hdc_keras.data.records import with_few_labels
    from hdc_keras.errors import ConfigError
    from hdc_keras.probes.registry import require_labels
    from hdc_keras.runs.checkpoints import is_best, require_weights
    from hdc_keras.runs.directory import RunDirectory

    from .console import NamedBars, print_notes, progress_bar, start_backend
    from .experiments import find_config, other_videos
    from .pretrain import config_for_videos

    if method not in _METHODS:
        raise ConfigError(f"--method {method}: expected one of {', '.join(_METHODS)}.")
    best = is_best(checkpoint)
    directory: RunDirectory | None = None
    if run == _NO_RUN:
        if out is None:
            raise ConfigError("--run none needs --out, the folder of the classifier.")
        if method != "auto" or best or weights != "auto":
            raise ConfigError("--run none trains the whole network: leave out --method, --checkpoint and --weights.")
        experiment = load_experiment(find_config(config or config_for_videos()), set_, literals=other_videos(data))
    else:
        if config:
            raise ConfigError("--config is for --run none. A run has its own config; change it with --set.")
        directory = RunDirectory(run)
        directory.experiment()
        experiment = load_experiment(directory.config_file, set_, literals=other_videos(data))
        directory.require_network_of(experiment)
        directory.checkpoints.require(best)
    require_weights(weights, None if run == _NO_RUN else experiment)
    folder = out or Path(run) / f"classifier-{Path(data).stem}"
    records, notes = load_videos(experiment, label=label)
    columns = require_labels("finetune", records, True)
    if len(columns) > 1:
        raise ConfigError(f"the videos have several labels: {', '.join(columns)}. Choose one with --label.")
    count = experiment.evaluate.labels_per_class
    records = with_few_labels(records, count, experiment.seed) if count else records
    ClassifierDirectory(folder).check_free()
    start_backend()
    print_notes(notes)
    with progress_bar() as bar:
        bars = NamedBars(bar)
        facts = _make(directory, experiment, records, columns[0], method, folder, best, weights, bars)
        page = _write_page(folder, [record for record in records if record.split == "test"], bars)
    _print_facts(facts, folder, page)


def _make(
    directory: "RunDirectory | None",
    experiment: "Experiment",
    records: "list[VideoRecord]",
    column: str,
    method: str,
    folder: Path,
    best: bool,
    weights: str,
    bars: Any,
) -> dict[str, Any]:
    import keras

    from hdc_keras.classification.job import Request, make_classifier
    from hdc_keras.files import digest
    from hdc_keras.training.models import build_model

    if directory is None:
        keras.utils.set_random_seed(experiment.seed)
        model: HDC = build_model(experiment)
        origin: dict[str, Any] = {}
    else:
        model, file = directory.checkpoints.load(best=best, weights=weights)
        origin = {"run": directory.path, "checkpoint": file.name, "weights_sha256": digest(file)}
    request = Request(model, directory is not None, experiment, records, column, method, **origin)  # type: ignore[arg-type]
    return make_classifier(request, folder, bars)


def _write_page(folder: Path, test: "list[VideoRecord]", bars: Any) -> Path:
    from functools import partial

    from hdc_keras.classification.directory import ClassifierDirectory
    from hdc_keras.files import write_requested
    from hdc_keras.report.classifier_page import build_classifier_page

    directory = ClassifierDirectory(folder)
    page = build_classifier_page(directory, test, partial(bars, "thumbnails"))
    write_requested(directory.page_file, page.encode())
    return directory.page_file


def _print_facts(facts: dict[str, Any], folder: Path, page: Path) -> None:
    from .console import console, print_failures, print_parts

    test, videos = facts["test"], facts["videos"]
    ways = {"frozen": "a linear classifier on frozen features", "whole": "the whole network, trained"}
    console.print(f"Chosen: {ways[facts['chosen']]}.")
    if facts["note"]:
        console.print(facts["note"], style="yellow", soft_wrap=True)
    for name, figures in facts["candidates"].items():
        console.print(
            f"  {name}: {figures['top1']:.3f} of {videos['validation']['videos']} validation videos right, "
            f"cross-entropy {figures['loss']:.3f}",
            soft_wrap=True,
        )
    print_failures([f"{path}: {cause}" for path, cause in facts["failed"].items()], 20)
    if facts["untrained_classes"]:
        named = ", ".join(f"{name} ({count})" for name, count in facts["untrained_classes"].items())
        console.print(
            f"Classes without training videos, which it cannot name (test videos): {named}",
            style="yellow",
            soft_wrap=True,
        )
    low, high = test["interval"]
    console.print(
        f"Test: {test['top1']:.3f} of {test['videos']} videos right (95 % interval {low:.3f} to {high:.3f}; always the "
        f"most frequent class: {test['chance']:.3f})",
        soft_wrap=True,
    )
    seen = facts["seen_in_pretraining"]
    if seen and seen["test_videos"]:
        console.print(f"{seen['test_videos']} of {seen['of']} test videos were in pretraining.", style="yellow")
    print_parts("Classifier: ", (str(folder), "bold"), ", page: ", (str(page), "bold"), soft_wrap=True)
