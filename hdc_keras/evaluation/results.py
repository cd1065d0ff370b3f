"""The result of a protocol: from single answers to means, and to the files in `results/`."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hdc_keras.data.records import VideoRecord
from hdc_keras.evaluation.protocols import Answer, Metrics
from hdc_keras.training.run_directory import RunDirectory

# Predictions of single videos are kept for what a run is compared by.
_KEPT_SOURCES = ("features", "fine-tuned")
_COLUMNS = ("network", "column", "source", "split", "seed", "video_id", "label", "predicted", "neighbours")

ByNetwork = dict[str, dict[str, dict[str, Metrics]]]


@dataclass(frozen=True)
class Outcome:
    """One answer, and whom it is about.

    Attributes:
        network: "metrics" (the run's), "random_weights" or "supervised".
        split: name of the split.
        answer: metrics and predictions.
        test: the test videos, in the order of the predictions.
    """

    network: str
    split: str
    answer: Answer
    test: Sequence[VideoRecord]


def summarise(outcomes: Sequence[Outcome]) -> tuple[ByNetwork, ByNetwork, list[dict[str, Any]]]:
    """Mean and standard deviation over splits and seeds, and every single answer.

    Returns:
        Means by network, label column, source and metric; standard deviations (of a sample, n - 1) of those that were
        repeated, likewise; and one line an answer.
    """
    found: dict[tuple[str, str, str, str], list[float]] = {}
    repeats = []
    for outcome in outcomes:
        answer = outcome.answer
        for name, value in answer.judgement.metrics.items():
            found.setdefault((outcome.network, answer.column, answer.source, name), []).append(value)
        repeats.append(
            {
                "network": outcome.network,
                "split": outcome.split,
                "seed": answer.seed,
                "column": answer.column,
                "source": answer.source,
                "metrics": answer.judgement.metrics,
            }
        )
    means: ByNetwork = {}
    deviations: ByNetwork = {}
    for (network, column, source, name), values in found.items():
        _place(means, network, column, source)[name] = statistics.mean(values)
        if len(values) > 1:
            _place(deviations, network, column, source)[name] = statistics.stdev(values)
    return means, deviations, repeats


def _place(tree: ByNetwork, network: str, column: str, source: str) -> Metrics:
    return tree.setdefault(network, {}).setdefault(column, {}).setdefault(source, {})


def write_result(run: RunDirectory, name: str, result: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write `results/{name}.json`, and what was said of each test video to `results/{name}.videos.csv`."""
    run.write_text(f"results/{name}.json", json.dumps(result, indent=2))
    rows = [row for outcome in outcomes for row in _rows(outcome)]
    if rows:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(rows)
        run.write_text(f"results/{name}.videos.csv", text.getvalue())


def _rows(outcome: Outcome) -> list[list[str]]:
    answer, judgement = outcome.answer, outcome.answer.judgement
    if answer.source not in _KEPT_SOURCES:
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
