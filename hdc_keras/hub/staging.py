"""What of a folder is published: what is needed to use it, without local paths and without pictures of videos."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from hdc_keras.classification.directory import ClassifierDirectory
from hdc_keras.config import Experiment, dump_experiment
from hdc_keras.errors import RunError
from hdc_keras.files import digest, link_or_copy
from hdc_keras.hub.card import classifier_card, export_card, run_card
from hdc_keras.results.store import read_results
from hdc_keras.runs.directory import RunDirectory

Kind = Literal["run", "classifier", "export"]
CARD = "README.md"
# Keys of the config that hold local paths.
_PATHS = (("data", "path"), ("data", "annotations"), ("model", "weights"), ("model", "init_from"))
# Of a result, what names local files.
_LOCAL = ("counts", "failed", "run")


def kind_of(folder: Path) -> Kind:
    """What a folder is.

    Raises:
        RunError: it is none of the three.
    """
    if (folder / "classifier.json").exists():
        return "classifier"
    if (folder / "config.yaml").exists() and (folder / "checkpoints").is_dir():
        return "run"
    if (folder / "assets.extra" / "hdc_keras.json").exists() or _cards_of_files(folder):
        return "export"
    raise RunError(
        f"{folder}: expected a run with a checkpoint, a classifier of `hdc-keras finetune`, or a folder with an export "
        "and its card."
    )


@contextmanager
def staged(folder: Path, repository: str, licence: str | None) -> Iterator[Path]:
    """A temporary folder with what of `folder` is published, and its card. It is removed at the end.

    Args:
        folder: a run, a classifier, or a folder with an export.
        repository: name of the repository, for the card.
        licence: licence of the weights, as an identifier of the Hub such as "cc-by-4.0".

    Raises:
        RunError: the folder is none of these, or it is damaged.
    """
    kind = kind_of(folder)
    with TemporaryDirectory(prefix="hdc-keras-hub-") as temporary:
        place = Path(temporary)
        if kind == "run":
            card = _stage_run(folder, place, repository, licence)
        elif kind == "classifier":
            card = _stage_classifier(folder, place, repository, licence)
        else:
            card = _stage_export(folder, place, repository, licence)
        (place / CARD).write_text(card, encoding="utf-8")
        yield place


def _stage_run(folder: Path, place: Path, repository: str, licence: str | None) -> str:
    run = RunDirectory(folder)
    experiment = without_paths(run.experiment())
    run.checkpoints.require()
    (place / "config.yaml").write_text(dump_experiment(experiment), encoding="utf-8")
    (place / "checkpoints").mkdir()
    for file in {run.checkpoints.files()[-1], run.checkpoints.best}:
        if file.exists():
            link_or_copy(file, place / "checkpoints" / file.name)
    if run.metrics_file.exists():
        shutil.copy(run.metrics_file, place)
    results = [result.values for result in read_results(folder)]
    (place / "results").mkdir()
    for result in results:
        _write_json(place / "results" / f"{result['name']}.json", _without_local(result))
    return run_card(experiment, results, digest(run.checkpoints.files()[-1]), repository, licence)


def _stage_classifier(folder: Path, place: Path, repository: str, licence: str | None) -> str:
    directory = ClassifierDirectory(folder)
    facts = _without_local(directory.facts()) | {"failed": {}, "run": None}
    experiment = without_paths(directory.experiment())
    link_or_copy(directory.model_file, place / directory.model_file.name)
    (place / directory.config_file.name).write_text(dump_experiment(experiment), encoding="utf-8")
    _write_json(place / directory.facts_file.name, facts)
    return classifier_card(experiment, facts, repository, licence)


def _stage_export(folder: Path, place: Path, repository: str, licence: str | None) -> str:
    for file in folder.iterdir():
        if file.name != CARD and not file.name.startswith("."):
            shutil.copytree(file, place / file.name) if file.is_dir() else shutil.copy(file, place)
    cards = [folder / "MODEL_CARD.md"] if (folder / "MODEL_CARD.md").exists() else _cards_of_files(folder)
    return export_card([card.read_text(encoding="utf-8") for card in cards], repository, licence)


def _cards_of_files(folder: Path) -> list[Path]:
    """Cards of exported files: `NAME.md` beside NAME, with the facts in `NAME.json`."""
    return sorted(
        card
        for card in folder.glob("*.md")
        if card.with_suffix("").exists() and card.with_suffix(".json").exists() and card.name != CARD
    )


def without_paths(experiment: Experiment) -> Experiment:
    """The experiment, with file names in place of full paths."""
    config: dict[str, Any] = experiment.model_dump()
    for section, key in _PATHS:
        if config[section][key]:
            config[section][key] = Path(config[section][key]).name
    return Experiment.model_validate(config)


def _without_local(result: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in result.items() if name not in _LOCAL}
    return kept | ({"dataset": Path(str(kept["dataset"])).name} if "dataset" in kept else {})


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2), encoding="utf-8")
