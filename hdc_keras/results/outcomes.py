"""The answers of a protocol for several networks, splits and seeds; their means and standard deviations."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hdc_keras.data.records import VideoRecord
from hdc_keras.probes.protocol import Answer, Metrics

# The sources that stand for a whole network, in order of preference.
MAIN_SOURCES = ("fine-tuned", "features")

# Metrics by network, label column and source.
ByNetwork = dict[str, dict[str, dict[str, Metrics]]]


@dataclass(frozen=True)
class Outcome:
    """An answer, with the network and the split that it belongs to.

    Attributes:
        network: "metrics" (the pretrained network), "random_weights" or "supervised".
        split: name of the split.
        answer: metrics and predictions.
        test: the test videos, in the order of the predictions.
    """

    network: str
    split: str
    answer: Answer
    test: Sequence[VideoRecord]


def summarise(outcomes: Sequence[Outcome]) -> tuple[ByNetwork, ByNetwork, list[dict[str, Any]]]:
    """Compute means and standard deviations over splits and seeds.

    Returns:
        Means by network, label column, source and metric; sample standard deviations (n - 1) in the same form, for
        metrics with several values; and a list of the individual answers.
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


def confusions(outcomes: Sequence[Outcome]) -> dict[str, dict[str, dict[str, int]]]:
    """Count the predictions for the test videos of each class, summed over splits and seeds.

    They are those of the pretrained network, from the source that stands for the whole network.

    Returns:
        Number of predictions by label column, true class and predicted class; zeros are left out.
    """
    found: dict[str, dict[str, Counter[str]]] = {}
    for outcome in outcomes:
        column, judgement = outcome.answer.column, outcome.answer.judgement
        if outcome.network == "metrics" and outcome.answer.source in MAIN_SOURCES:
            for record, predicted in zip(outcome.test, judgement.predicted, strict=False):
                found.setdefault(column, {}).setdefault(record.labels[column], Counter())[predicted] += 1
    return {
        column: {label: dict(sorted(counts.items())) for label, counts in sorted(by_class.items())}
        for column, by_class in found.items()
    }


def _place(tree: ByNetwork, network: str, column: str, source: str) -> Metrics:
    return tree.setdefault(network, {}).setdefault(column, {}).setdefault(source, {})
