"""The files in `results/` of a run: `hdc-keras evaluate` writes them, `compare` and `report` read them."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdc_keras.errors import RunError
from hdc_keras.results.outcomes import Outcome
from hdc_keras.runs.directory import RunDirectory

# Key of the pretrained network in a result, beside "random_weights" and "supervised".
PRETRAINED = "metrics"
# Sources whose per-video predictions are saved. For other sources, only the metrics are saved.
_SOURCES_BY_VIDEO = ("features", "fine-tuned")
_CSV_COLUMNS = ("network", "column", "source", "split", "seed", "video_id", "label", "predicted", "neighbours")


@dataclass(frozen=True)
class JudgedVideo:
    """The prediction of one judge for one test video: a line of `results/NAME.videos.csv`.

    Attributes:
        network: "metrics" (the pretrained network), "random_weights" or "supervised".
        column: label column.
        source: the features that were used, or "fine-tuned".
        split: name of the split.
        seed: seed of the judge.
        video_id: id of the test video.
        label: true class.
        predicted: predicted class.
        neighbours: for retrieval, the ids of the nearest training videos, nearest first; else empty.
    """

    network: str
    column: str
    source: str
    split: str
    seed: str
    video_id: str
    label: str
    predicted: str
    neighbours: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Whether the prediction is correct."""
        return self.label == self.predicted


@dataclass(frozen=True)
class SavedResult:
    """The result of one protocol on one data set.

    Attributes:
        name: file name without suffix: protocol, data set, and a digest of everything else that the figures depend on.
        values: content of the JSON file.
        videos: the per-video predictions; empty if none were saved.
        written: when the file was written, in seconds since 1970.
    """

    name: str
    values: dict[str, Any]
    videos: tuple[JudgedVideo, ...]
    written: float = 0.0

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return self.values["protocol"]

    @property
    def dataset(self) -> str:
        """Path of the data set, or "moving-shapes"."""
        return self.values["dataset"]

    @property
    def kind(self) -> str:
        """Protocol and last name of the data set. A run may have several results of a kind: see `newest`."""
        return f"{self.protocol}-{Path(self.dataset).stem}"

    def judged(self, network: str, column: str, source: str | None = None) -> list[JudgedVideo]:
        """The predictions of one network for one label column, from one source or (`None`) from all."""
        return [
            video
            for video in self.videos
            if video.network == network and video.column == column and source in (None, video.source)
        ]


def write_result(run: RunDirectory, name: str, result: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write `results/{name}.json`, and the predictions for each test video to `results/{name}.videos.csv`.

    Raises:
        RunError: a file cannot be written.
    """
    run.write_text(f"results/{name}.json", json.dumps(result, indent=2))
    rows = [row for outcome in outcomes for row in _rows(outcome)]
    if rows:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_CSV_COLUMNS)
        writer.writerows(rows)
        run.write_text(f"results/{name}.videos.csv", text.getvalue())


def read_results(run: Path) -> list[SavedResult]:
    """Read all results in the `results/` of a run or of `evaluate --out`, sorted by name.

    Returns:
        The results; an empty list if the run was never evaluated.

    Raises:
        RunError: the folder holds no run, or a result cannot be read.
    """
    # `evaluate --features` writes results without a run.
    if not (run / "config.yaml").exists() and not (run / "results").is_dir():
        raise RunError(f"{run} holds no run: there is no config.yaml. Start a run with `hdc-keras pretrain`.")
    return [_read_result(file) for file in sorted((run / "results").glob("*.json"))]


def newest(results: Iterable[SavedResult]) -> list[SavedResult]:
    """The newest result of each protocol on each data set, in the order of their first appearance."""
    found: dict[tuple[str, str], SavedResult] = {}
    for result in results:
        key = (result.protocol, result.dataset)
        if key not in found or result.written > found[key].written:
            found[key] = result
    return list(found.values())


def require_results(run: Path) -> list[SavedResult]:
    """Read all results of a run, and raise an error if there are none.

    Raises:
        RunError: the folder holds no run, the run has no results, or one cannot be read.
    """
    results = read_results(run)
    if not results:
        raise RunError(
            f"{run} has no results. Evaluate the run first: hdc-keras evaluate --run {run} --protocol linear"
        )
    return results


def _read_result(file: Path) -> SavedResult:
    try:
        written = file.stat().st_mtime
        values = json.loads(file.read_text(encoding="utf-8"))
        missing = [key for key in ("protocol", "version", "dataset", PRETRAINED) if key not in values]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: cannot be read as a result ({error}). Evaluate the run again.") from error
    if not missing and not isinstance(values[PRETRAINED], dict):
        raise RunError(f"{file}: `{PRETRAINED}` is not an object. Restore the file, or evaluate the run again.")
    if missing:
        raise RunError(
            f"{file}: not a result, because these keys are missing: {', '.join(missing)}. Move it elsewhere, or "
            "evaluate the run again."
        )
    list_file = file.with_name(f"{file.stem}.videos.csv")
    return SavedResult(file.stem, values, tuple(_read_videos(list_file)) if list_file.exists() else (), written)


def _read_videos(file: Path) -> Iterable[JudgedVideo]:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns, rows = set(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{file}: cannot be read as a CSV file ({error}). Evaluate the run again.") from error
    missing = set(_CSV_COLUMNS) - columns
    if missing:
        raise RunError(f"{file}: missing columns: {', '.join(sorted(missing))}. Evaluate the run again.")
    for row in rows:
        values = {name: row[name] or "" for name in _CSV_COLUMNS}
        neighbours = tuple(name for name in values.pop("neighbours").split("|") if name)
        yield JudgedVideo(**values, neighbours=neighbours)


def _rows(outcome: Outcome) -> list[list[str]]:
    answer, judgement = outcome.answer, outcome.answer.judgement
    if answer.source not in _SOURCES_BY_VIDEO:
        return []
    neighbours = judgement.neighbours or [[]] * len(judgement.predicted)
    return [
        [
            outcome.network,
            answer.column,
            answer.source,
            outcome.split,
            str(answer.seed),
            record.video_id,
            record.labels[answer.column],
            predicted,
            "|".join(near),
        ]
        for record, predicted, near in zip(outcome.test, judgement.predicted, neighbours, strict=False)
    ]
