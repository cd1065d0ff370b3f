"""Runs beside each other: which differences are more than chance, by a paired bootstrap over test videos."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hdc_keras.errors import ConfigError
from hdc_keras.results.store import PRETRAINED, SavedResult, require_results

DRAWS = 10_000
# Metrics that are the share of test videos judged right, one by one, so that videos can be drawn again.
_SHARE_OF_VIDEOS = ("top1", "R@1")
# Written beside metrics, but no measure of quality: the penalty that the linear probe chose.
_NO_SCORE = ("l2",)
# A protocol that says how many are right, and nothing of single videos.
_WITHOUT_VIDEOS = "lowlabel"
# What a result says of how it was judged; two that differ in any of these have nothing to tell each other.
_HOW_JUDGED = ("version", "views", "splits")


@dataclass(frozen=True)
class Difference:
    """How much better a run is than the first.

    Attributes:
        value: its share of videos judged right less the first run's, over the videos judged in both; where videos are
            not judged one by one, its metric less the first run's.
        interval: 95 % interval; `None` where videos are not judged one by one.
        videos: how many were judged in both; 0 where they are not judged one by one.
    """

    value: float
    interval: tuple[float, float] | None = None
    videos: int = 0

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class ComparedRow:
    """One metric of all runs.

    Attributes:
        protocol: name of the protocol.
        version: of the protocol.
        dataset: path of the data set, or "moving-shapes".
        column: label column.
        source: where the features come from.
        metric: name of the metric.
        values: one for each run; `None` where a run has no comparable one.
        differences: to the first run, one for each further run.
    """

    protocol: str
    version: int
    dataset: str
    column: str
    source: str
    metric: str
    values: tuple[float | None, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Several runs, judged alike.

    Attributes:
        runs: their names; the first is the one that others are compared with.
        rows: what can be compared.
        notes: what cannot, and why; what to know of what can.
    """

    runs: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    notes: tuple[str, ...]


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Compare the results that runs share with those of the first.

    Args:
        folders: run directories, at least two.

    Raises:
        ConfigError: fewer than two.
        RunError: a folder is no run, has no results, or has some that cannot be read.
    """
    if len(folders) < 2:
        raise ConfigError("compare needs two runs or more, as in: hdc-keras compare runs/a runs/b")
    names = distinct_names(folders)
    results = [{result.name: result for result in require_results(folder)} for folder in folders]
    rows: list[ComparedRow] = []
    notes: list[str] = []
    for key in dict.fromkeys(name for of_run in results for name in of_run):
        having = [run for run, of_run in enumerate(results) if key in of_run]
        if len(having) < len(folders):
            without = ", ".join(names[run] for run in range(len(folders)) if run not in having)
            notes.append(f"{key}: not judged in {without}.")
        if having[0] or len(having) < 2:
            continue
        first = results[0][key]
        others: list[SavedResult | None] = []
        for run in range(1, len(folders)):
            other = results[run].get(key)
            differing = _how_judged_differs(first, other) if other else []
            if differing:
                notes.append(f"{key}: {names[run]} is not compared with {names[0]}: {'; '.join(differing)}.")
            elif other:
                notes += _notes_on_videos(key, first, other, names[run], names[0])
            others.append(None if differing else other)
        rows += _rows(first, others)
    return Comparison(tuple(names), tuple(rows), tuple(notes))


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Short names of folders: as many of their last parts as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_folder[-count:]) for of_folder in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return names


def paired_bootstrap(differences: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of paired differences (percentile bootstrap, Efron 1979).

    A draw of n of n differences with replacement is decided by how often each distinct value comes in it, which is
    multinomial; drawing those counts is drawing the differences, for far less work.

    Args:
        differences: (videos,) each video's correctness in one run less that in the other, in [-1, 1].
        draws: how many times as many videos are drawn.
        seed: of the draws.

    Returns:
        The 2.5 % and the 97.5 % quantile of the means.
    """
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), size=draws)
    low, high = np.quantile(drawn @ values / len(differences), [0.025, 0.975])
    return float(low), float(high)


def _rows(first: SavedResult, others: Sequence[SavedResult | None]) -> list[ComparedRow]:
    rows = []
    for column, sources in first.values[PRETRAINED].items():
        for source, metrics in sources.items():
            for metric in [name for name in metrics if name not in _NO_SCORE]:
                values = [_value(other, column, source, metric) for other in others]
                if all(value is None for value in values):
                    continue
                differences = [
                    None if other is None or value is None else _difference(first, other, column, source, metric)
                    for other, value in zip(others, values, strict=True)
                ]
                rows.append(
                    ComparedRow(
                        first.protocol,
                        first.values["version"],
                        first.dataset,
                        column,
                        source,
                        metric,
                        (metrics[metric], *values),
                        tuple(differences),
                    )
                )
    return rows


def _value(result: SavedResult | None, column: str, source: str, metric: str) -> float | None:
    return result.values[PRETRAINED].get(column, {}).get(source, {}).get(metric) if result else None


def _difference(first: SavedResult, other: SavedResult, column: str, source: str, metric: str) -> Difference:
    if metric in _SHARE_OF_VIDEOS:
        ours, theirs = _correctness(other, column, source), _correctness(first, column, source)
        both = sorted(set(ours) & set(theirs))
        if both:
            paired = np.array([ours[video] - theirs[video] for video in both])
            return Difference(float(paired.mean()), paired_bootstrap(paired), len(both))
    values = [result.values[PRETRAINED][column][source][metric] for result in (other, first)]
    return Difference(values[0] - values[1])


def _correctness(result: SavedResult, column: str, source: str) -> dict[str, float]:
    """Share of the judges, over seeds and splits, that got each test video right."""
    right: dict[str, list[bool]] = defaultdict(list)
    for video in result.judged(PRETRAINED, column, source):
        right[video.video_id].append(video.is_right)
    return {video_id: sum(verdicts) / len(verdicts) for video_id, verdicts in right.items()}


def _how_judged_differs(first: SavedResult, other: SavedResult) -> list[str]:
    """All that makes two results of one protocol incomparable, each in a few words."""
    found = [
        f"its {key} is {_shown(other.values.get(key))} instead of {_shown(first.values.get(key))}"
        for key in _HOW_JUDGED
        if other.values.get(key) != first.values.get(key)
    ]
    ours, theirs = (result.values.get("settings") or {} for result in (other, first))
    found += [
        f"its setting {name} is {_shown(ours.get(name))} instead of {_shown(theirs.get(name))}"
        for name in dict.fromkeys([*theirs, *ours])
        if ours.get(name) != theirs.get(name)
    ]
    labels, others_labels = _labels(first), _labels(other)
    relabelled = sum(others_labels.get(key, label) != label for key, label in labels.items())
    if relabelled:
        found.append(f"{relabelled} of its test videos have other labels")
    # A set may have been moved: it is the same while its test videos are.
    if other.dataset != first.dataset and (labels != others_labels or not labels):
        found.append(f"its data set is {other.dataset} instead of {first.dataset}")
    elif labels and others_labels and not labels.keys() & others_labels.keys():
        found.append("none of its test videos is the same")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "not given" if value is None else str(value)


def _labels(result: SavedResult) -> dict[tuple[str, str], str]:
    """Class by label column and test video."""
    return {(video.column, video.video_id): video.label for video in result.videos if video.network == PRETRAINED}


def _notes_on_videos(key: str, first: SavedResult, other: SavedResult, name: str, first_name: str) -> list[str]:
    """What to know of the test videos of two comparable results."""
    if first.protocol == _WITHOUT_VIDEOS:
        return []
    for result, of_run in ((first, first_name), (other, name)):
        if not result.videos:
            return [f"{key}: no intervals for {name}: {of_run} has no list of judged videos; evaluate it again."]
    videos = [{video_id for _, video_id in _labels(result)} for result in (other, first)]
    notes = []
    if videos[0] != videos[1]:
        notes.append(
            f"{key}: the test videos of {name} and {first_name} differ: {len(videos[0])} and {len(videos[1])}, of "
            f"which {len(videos[0] & videos[1])} were judged in both. Differences of top1 and R@1 are over these."
        )
    for fact, verb in (("architecture", "is of"), ("seeds", "is judged with seeds")):
        ours, theirs = other.values.get(fact), first.values.get(fact)
        if ours != theirs:
            notes.append(f"{key}: {name} {verb} {_shown(ours)}, {first_name} {_shown(theirs)}.")
    return notes
