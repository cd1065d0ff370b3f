"""From the answers of a protocol to their means and standard deviations."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hdc_keras.data.records import VideoRecord
from hdc_keras.probes.protocol import Answer, Metrics

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
