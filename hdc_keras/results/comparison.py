"""Compare the results of runs, with confidence intervals from a paired bootstrap over the test videos."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hdc_keras.errors import ConfigError
from hdc_keras.results.store import PRETRAINED, SavedResult, require_results

# Resamples of the bootstrap.
DRAWS = 10_000
# Metrics that are the share of correctly predicted test videos, so they can be computed again for resampled videos.
_SHARE_OF_VIDEOS = ("top1", "R@1")
# Saved among the metrics, but not a measure of quality: the penalty that the linear probe selected.
_NOT_COMPARED = ("l2",)
# The protocol that saves no predictions for individual videos.
_WITHOUT_VIDEOS = "lowlabel"
# Keys of a result that must be equal for two results to be comparable, besides `settings`.
_MUST_BE_EQUAL = ("version", "views", "splits")
# Of these, what vectors from elsewhere may not say.
_MAY_BE_UNKNOWN = "views"


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between a run and the first run; positive if the run has the higher value.

    Attributes:
        value: difference of the shares of correct predictions, over the test videos that both results have; difference
            of the metrics if there are no per-video predictions.
        interval: 95 % confidence interval; `None` if there are no per-video predictions.
        videos: number of test videos that both results have; 0 if there are no per-video predictions.
    """

    value: float
    interval: tuple[float, float] | None = None
    videos: int = 0

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and it excludes zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class ComparedRow:
    """One metric of all runs.

    Attributes:
        protocol: name of the protocol.
        version: version of the protocol.
        dataset: path of the data set, or "moving-shapes".
        column: label column.
        source: the features that were used, or "fine-tuned".
        metric: name of the metric.
        values: the metric of each run; `None` if a run has no comparable result.
        differences: for each run but the first, its difference to the first run.
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
    """The comparison of several runs with the first of them.

    Attributes:
        runs: names of the runs.
        rows: the metrics that can be compared.
        notes: what cannot be compared and why, and caveats about the rest.
    """

    runs: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    notes: tuple[str, ...]


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Compare the results of runs with those of the first run.

    Args:
        folders: run directories, at least two.

    Raises:
        ConfigError: there are fewer than two.
        RunError: a folder holds no run, or its results are missing or cannot be read.
    """
    if len(folders) < 2:
        raise ConfigError("compare needs two runs or more, for example: hdc-keras compare runs/a runs/b")
    names = distinct_names(folders)
    results = [_by_kind(require_results(folder)) for folder in folders]
    rows: list[ComparedRow] = []
    notes: list[str] = []
    for kind in dict.fromkeys(name for by_kind in results for name in by_kind):
        with_result = [run for run, by_kind in enumerate(results) if kind in by_kind]
        if len(with_result) < len(folders):
            without = ", ".join(names[run] for run in range(len(folders)) if run not in with_result)
            notes.append(f"{kind}: no result in {without}.")
        if with_result[0] or len(with_result) < 2:  # not in the first run, or in no other
            continue
        first = results[0][kind][0]
        notes += _several(kind, names[0], results[0][kind], first)
        others: list[SavedResult | None] = []
        for run in range(1, len(folders)):
            found = results[run].get(kind, [])
            other = next((result for result in found if not _obstacles(first, result)), None)
            if other:
                notes += _several(kind, names[run], found, other)
                notes += _caveats(kind, first, other, names[run], names[0])
            elif found:
                obstacles = "; ".join(_obstacles(first, found[0]))
                notes.append(f"{kind}: {names[run]} is not compared with {names[0]}: {obstacles}.")
            others.append(other)
        rows += _rows(first, others)
    return Comparison(tuple(names), tuple(rows), tuple(notes))


def _by_kind(results: Sequence[SavedResult]) -> dict[str, list[SavedResult]]:
    """The results of each protocol on each data set, the newest first."""
    found: dict[str, list[SavedResult]] = {}
    for result in sorted(results, key=lambda result: (-result.written, result.name)):
        found.setdefault(result.kind, []).append(result)
    return dict(sorted(found.items()))


def _several(kind: str, run: str, results: Sequence[SavedResult], chosen: SavedResult) -> list[str]:
    """A note on which of several results is compared."""
    if len(results) < 2:
        return []
    which = "the newest" if chosen is results[0] else "the newest that is comparable"
    return [f"{kind}: {run} has {len(results)} results; compared is {which}, {chosen.name} ({_origin(chosen)})."]


def _origin(result: SavedResult) -> str:
    values = result.values
    return ", ".join(f"{name} {_shown(values[name])}" for name in ("checkpoint", "splits", "views") if values.get(name))


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Shorten the paths of folders to the fewest trailing parts that still distinguish them."""
    all_parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, all_parts)) + 1):
        names = ["/".join(parts[-count:]) for parts in all_parts]
        if len(set(names)) == len(set(all_parts)):
            return names
    return names


def paired_bootstrap(differences: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of the mean of paired differences (percentile bootstrap, Efron 1979).

    The mean of a resample depends only on how often each distinct value occurs in it. These counts follow a multinomial
    distribution, and drawing them is much faster than drawing the videos.

    Args:
        differences: (videos,) correctness of each video in one run minus that in the other, in [-1, 1].
        draws: number of resamples.
        seed: seed of the resampling.

    Returns:
        The 2.5 % and 97.5 % quantiles of the means.
    """
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), size=draws)
    low, high = np.quantile(drawn @ values / len(differences), [0.025, 0.975])
    return float(low), float(high)


def _rows(first: SavedResult, others: Sequence[SavedResult | None]) -> list[ComparedRow]:
    rows = []
    for column, sources in first.values[PRETRAINED].items():
        for source, metrics in sources.items():
            for metric in [name for name in metrics if name not in _NOT_COMPARED]:
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
        correctness, baseline = _correctness(other, column, source), _correctness(first, column, source)
        shared = sorted(set(correctness) & set(baseline))
        if shared:
            paired = np.array([correctness[video] - baseline[video] for video in shared])
            return Difference(float(paired.mean()), paired_bootstrap(paired), len(shared))
    values = [result.values[PRETRAINED][column][source][metric] for result in (other, first)]
    return Difference(values[0] - values[1])


def _correctness(result: SavedResult, column: str, source: str) -> dict[str, float]:
    """Share of the predictions for each test video, over seeds and splits, that are correct."""
    predictions: dict[str, list[bool]] = defaultdict(list)
    for video in result.judged(PRETRAINED, column, source):
        predictions[video.video_id].append(video.is_right)
    return {video_id: sum(correct) / len(correct) for video_id, correct in predictions.items()}


def _obstacles(first: SavedResult, other: SavedResult) -> list[str]:
    """List the reasons why two results of one protocol cannot be compared, each in a few words."""
    found = [
        f"`{key}` is {_shown(other.values.get(key))} instead of {_shown(first.values.get(key))}"
        for key in _MUST_BE_EQUAL
        if other.values.get(key) != first.values.get(key)
        and not (key == _MAY_BE_UNKNOWN and (key not in other.values or key not in first.values))
    ]
    settings, expected = (result.values.get("settings") or {} for result in (other, first))
    found += [
        f"setting `{name}` is {_shown(settings.get(name))} instead of {_shown(expected.get(name))}"
        for name in dict.fromkeys([*expected, *settings])
        if settings.get(name) != expected.get(name)
    ]
    labels, expected_labels = _labels(other), _labels(first)
    relabelled = sum(labels.get(key, label) != label for key, label in expected_labels.items())
    if relabelled:
        found.append(f"{relabelled} of its test videos have different labels")
    # A data set may have been moved: a different path does not matter as long as the test videos are the same.
    if other.dataset != first.dataset and (labels != expected_labels or not labels):
        found.append(f"its data set is {other.dataset} instead of {first.dataset}")
    elif labels and expected_labels and not labels.keys() & expected_labels.keys():
        found.append("they have no test video in common")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "missing" if value is None else str(value)


def _labels(result: SavedResult) -> dict[tuple[str, str], str]:
    """Class by (label column, id of the test video)."""
    return {(video.column, video.video_id): video.label for video in result.videos if video.network == PRETRAINED}


def _caveats(key: str, first: SavedResult, other: SavedResult, name: str, first_name: str) -> list[str]:
    """Caveats about comparable results of the runs `first_name` and `name`."""
    if first.protocol == _WITHOUT_VIDEOS:
        return []
    for result, run in ((first, first_name), (other, name)):
        if not result.videos:
            return [f"{key}: no intervals for {name}, because {run} has no per-video predictions. Evaluate it again."]
    videos = [{video_id for _, video_id in _labels(result)} for result in (other, first)]
    notes = []
    if videos[0] != videos[1]:
        notes.append(
            f"{key}: {name} was evaluated on {len(videos[0])} test videos and {first_name} on {len(videos[1])}. "
            f"Differences of top1 and R@1 are over the {len(videos[0] & videos[1])} that both have."
        )
    for result, run in ((first, first_name), (other, name)):
        if _MAY_BE_UNKNOWN not in result.values and {_MAY_BE_UNKNOWN} & (first.values.keys() | other.values.keys()):
            notes.append(f"{key}: it is not known which views of a video the vectors of {run} are from.")
    for fact, shown in (
        ("architecture", "architectures"),
        ("seeds", "seeds of the evaluation"),
        ("frames", "frames of a clip"),
        ("stride", "strides between frames"),
        ("fps", "frames per second"),
        ("decode_size", "frame sizes"),
    ):
        values = [_shown(result.values.get(fact)) for result in (other, first)]
        if other.values.get(fact) != first.values.get(fact) and None not in (
            other.values.get(fact),
            first.values.get(fact),
        ):
            notes.append(f"{key}: the {shown} differ: {values[0]} for {name}, {values[1]} for {first_name}.")
    return notes
