import statistics

import pytest

from hdc_keras.probes.protocol import Answer, Judgement
from hdc_keras.results.outcomes import Outcome, summarise


def outcome(top1, network="metrics", split="1", seed=0, source="features"):
    return Outcome(network, split, Answer("label", source, seed, Judgement({"top1": top1})), [])


def test_means_and_deviations_are_over_splits_and_seeds():
    outcomes = [outcome(0.5), outcome(0.6, seed=1), outcome(0.9, split="2"), outcome(0.1, "random_weights")]

    means, deviations, repeats = summarise(outcomes)

    assert means["metrics"]["label"]["features"]["top1"] == pytest.approx(2 / 3)
    assert means["random_weights"]["label"]["features"]["top1"] == 0.1
    # A single value has no deviation.
    assert deviations == {"metrics": {"label": {"features": {"top1": statistics.stdev([0.5, 0.6, 0.9])}}}}
    assert [(r["network"], r["split"], r["seed"], r["metrics"]["top1"]) for r in repeats] == [
        ("metrics", "1", 0, 0.5),
        ("metrics", "1", 1, 0.6),
        ("metrics", "2", 0, 0.9),
        ("random_weights", "1", 0, 0.1),
    ]
