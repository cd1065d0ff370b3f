"""Evaluate vectors from any encoder: a Parquet file in place of a run. No backend is loaded."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment
from hdc_keras.data.records import VideoRecord, with_splits
from hdc_keras.errors import ConfigError, DataError, RunError
from hdc_keras.evaluation.context import Asked, Progress
from hdc_keras.evaluation.judging import judge_sources
from hdc_keras.evaluation.protocols import require_known
from hdc_keras.evaluation.result import Subject, write_outcomes
from hdc_keras.evaluation.splits import Splits, with_labels_per_class
from hdc_keras.features.vector_table import VectorTable
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.files import digest, require_creatable
from hdc_keras.probes.registry import PROBES, feature_sources, require_labels
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.videos import seen_in_pretraining

_LEVEL = re.compile(r"P\d+")
_HEAD = re.compile(r"(P\d+)_(\w+)")
# `embed` writes it for search. No run is evaluated by it.
_JOINED = "embedding"


def require_judged_by_vectors(protocols: Sequence[str], out: Path) -> None:
    """Check what can be checked before the vectors are read.

    Raises:
        ConfigError: a protocol is unknown, or needs more than a vector for each video; or `out` holds a run.
        RunError: the folder of results cannot be written.
    """
    require_known(protocols)
    for protocol in protocols:
        if protocol not in PROBES or PROBES[protocol].needs_views:
            able = ", ".join(name for name, probe in PROBES.items() if not probe.needs_views)
            needs = "the vectors of single views" if protocol in PROBES else "a network to train"
            raise ConfigError(f"--protocol {protocol} needs {needs}. With --features, choose from {able}.")
    if (out / "config.yaml").exists():
        raise ConfigError(f"--out {out}: holds a run. Choose another folder for the results of --features.")
    try:
        require_creatable(out / "results")
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror or error}).") from error


def own_splits(table: VectorTable, experiment: Experiment) -> dict[str, list[VideoRecord]]:
    """The videos of a file with its own labels. If it has no splits, test videos are held out as for any set."""
    records = sorted(table.records, key=lambda record: record.video_id)
    return {str(experiment.data.official_split): with_splits(records, experiment.data.holdout, experiment.seed)}


def evaluate_vectors(
    table: VectorTable,
    experiment: Experiment,
    splits: Splits,
    dataset: str,
    protocols: Sequence[str],
    out: Path,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Run protocols on vectors, and write the results to `out/results/`, where `compare` reads them.

    Args:
        table: the vectors.
        experiment: its `evaluate` section and its seed are used.
        splits: labelled videos of each split, by its name.
        dataset: path of the videos, for the result.
        protocols: names in `PROBES`.
        out: folder to write to.
        progress: called with (description of the current task, items done, total items).

    Returns:
        The result of each protocol, by its name.

    Raises:
        ConfigError: as in `require_judged_by_vectors`.
        DataError: there are no labels, a split has no training or no test videos, or too many videos have no vector.
        RunError: a file cannot be written.
    """
    require_judged_by_vectors(protocols, out)
    used = {name: with_labels_per_class(records, experiment) for name, records in splits.items()}
    for protocol in protocols:
        for records in used.values():
            require_labels(protocol, records)
    videos = list({record.video_id: record for records in used.values() for record in records}.values())
    features = table.features_of(videos)
    _require_most(features, experiment.data.max_failed_share)
    asked = Asked(RunDirectory(out), experiment, used, progress)
    facts = {"features": str(table.file), "seen_in_pretraining": _seen(table, used)}
    subject = Subject(asked, dataset, _depends_on(table), facts)
    results = {}
    for protocol in protocols:
        sources = sources_of(protocol, list(table.arrays))
        found = judge_sources(asked, protocol, {"metrics": features}, {"metrics": sources})
        # What a publication does with clips and pixels cannot be compared with vectors.
        found = replace(found, recipe={**found.recipe, "reduced": {}})
        results[protocol] = write_outcomes(subject, protocol, found)
    return results


def sources_of(protocol: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """The sources that a protocol is applied to, as columns to concatenate by name.

    Columns named as by `hdc-keras embed` give the sources of `hdc-keras evaluate`. Otherwise, "features" is all
    columns, and each of several columns is a source too.
    """
    levels = [name for name in columns if _LEVEL.fullmatch(name)]
    if not levels:
        return {"features": list(columns)} | ({name: [name] for name in columns} if len(columns) > 1 else {})
    pairs = [(found[1], found[2]) for name in columns if (found := _HEAD.fullmatch(name))]
    named = {*levels, *(f"{level}_{task}" for level, task in pairs), _JOINED}
    others = {name: [name] for name in columns if name not in named}
    return feature_sources(protocol, levels, pairs) | others


def _depends_on(table: VectorTable) -> dict[str, Any]:
    """What the figures depend on, as far as the file says it."""
    known: Mapping[str, Any] = table.made_from
    views = f"{known['clips']}x{known['crops']}" if {"clips", "crops"} <= known.keys() else None
    facts = {name: known.get(name) for name in ("clips", "frames", "stride", "decode_size", "decoder", "fps")}
    return {"architecture": known.get("backbone", table.file.stem), "features_sha256": digest(table.file)} | {
        name: value for name, value in {"views": views, **facts}.items() if value is not None
    }


def _seen(table: VectorTable, splits: Splits) -> dict[str, Any]:
    """How many test videos the run that made the table was trained on; empty if no such run is here."""
    run = Path(str(table.made_from.get("run", "")))
    if not table.made_from or not (run / "config.yaml").exists():
        return {}
    try:
        return {name: seen_in_pretraining(run, records) for name, records in splits.items()}
    except RunError:
        return {}


def _require_most(features: VideoFeatures, most: float) -> None:
    if len(features.failed) > most * features.asked:
        error = next(iter(features.failed.values()))
        raise DataError(
            f"{len(features.failed)} of {features.asked} videos have no vector, more than `data.max_failed_share` "
            f"({most:g}) allows, such as {error}. Rows are found by the column `video_id`, or by `path` where there is "
            "no such column."
        )
