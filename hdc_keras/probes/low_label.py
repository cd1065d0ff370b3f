"""Linear probe with few labels: accuracy by the number of labelled training videos."""

from collections import Counter
from collections.abc import Sequence

from hdc_keras.data.sampling import random_generator
from hdc_keras.features.video_features import VideoFeatures, joined
from hdc_keras.probes.linear import linear_probe
from hdc_keras.probes.protocol import MEAN_CLASS_ACCURACY, Judgement, Metrics, Protocol, Question, judged_by_scores

_PER_CLASS = (1, 5, 10, 20)
_TOTAL = 1000
# Number of random subsets of the training videos; results are averaged over them.
_DRAWS = 5


def _low_label(question: Question) -> Judgement:
    labels = question.train_labels
    metrics: Metrics = {}
    for name, count in _budgets(labels).items():
        rows = draw_per_class(labels, count, question.seed)
        records = [question.train.records[row] for row in rows]
        drawn = VideoFeatures(records, {n: question.train.arrays[n][rows] for n in question.names}, len(records), {})
        train, test = joined(drawn, question.test, question.names)
        scores, classes, _ = linear_probe(
            train,
            [labels[row] for row in rows],
            test,
            [question.train_groups[row] for row in rows],
            question.settings.linear_l2,
        )
        found = judged_by_scores(scores, classes, question.test_labels).metrics
        metrics |= {f"{metric}, {name}": found[metric] for metric in ("top1", MEAN_CLASS_ACCURACY)}
    return Judgement(metrics)


def _budgets(labels: Sequence[str]) -> dict[str, int]:
    """Number of videos per class, by the end of the metric's name. Budgets that would use every video are left out."""
    counts = Counter(labels)
    budgets = {f"{count} per class": count for count in _PER_CLASS}
    budgets[f"{_TOTAL:,} in all"] = -(-_TOTAL // len(counts))
    return {name: count for name, count in budgets.items() if count < max(counts.values())}


def draw_per_class(labels: Sequence[str], count: int, seed: int) -> list[int]:
    """Draw at most `count` videos of each class at random.

    With the same seed, a smaller `count` draws a subset of the videos that a larger one draws.

    Returns:
        The rows of the drawn videos in `labels`, ascending.
    """
    taken: Counter[str] = Counter()
    rows = []
    for row in random_generator("low label", seed).permutation(len(labels)):
        taken[labels[row]] += 1
        if taken[labels[row]] <= count:
            rows.append(int(row))
    return sorted(rows)


LOW_LABEL = Protocol(
    1,
    "our choice: a linear probe with 1, 5, 10 and 20 labelled videos per class, and with ceil(1,000 / classes) per "
    "class as in SEVERE (arXiv 2203.14221), which fine-tunes the network on them",
    _low_label,
    lambda settings: {"per_class": list(_PER_CLASS), "in_all": _TOTAL, "linear_l2": list(settings.linear_l2)},
    is_random=True,
    least_seeds=_DRAWS,
)
