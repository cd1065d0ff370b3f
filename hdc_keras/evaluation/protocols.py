"""The protocols of `hdc-keras evaluate`: features in, a result that says how it came about out."""

from collections.abc import Callable, Iterable, Sequence

from hdc_keras.config import Experiment
from hdc_keras.errors import DataError
from hdc_keras.evaluation.features import VideoFeatures, joined
from hdc_keras.evaluation.linear_probe import linear_probe
from hdc_keras.evaluation.retrieval import cosine_similarity, knn_predict, recall_at

# A protocol's version changes whenever the same features would get another figure.
PROTOCOLS = {"linear": 1, "knn": 1, "retrieval": 1, "factors": 1}

Metrics = dict[str, float]


def feature_sources(protocol: str, levels: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """What a protocol judges: all levels' features together, each level's, and each task's embeddings of all its
    levels. `factors` adds each head's embedding, and all heads' together.

    Args:
        protocol: a name in `PROTOCOLS`.
        levels: of the model.
        pairs: each (level, task) that has a head.

    Returns:
        Names of feature arrays, which are to be joined, by the name of the source.
    """
    sources = {"features": list(levels)}
    if len(levels) > 1:
        sources |= {level: [level] for level in levels}
    for level, task in pairs:
        sources.setdefault(f"{task} embeddings", []).append(f"{level}_{task}")
    if protocol == "factors":
        sources["all embeddings"] = [f"{level}_{task}" for level, task in pairs]
        if len(levels) > 1:
            sources |= {f"{level} {task} embedding": [f"{level}_{task}"] for level, task in pairs}
    return sources


def judge(
    protocol: str,
    features: VideoFeatures,
    sources: dict[str, list[str]],
    experiment: Experiment,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Metrics]]:
    """Run one protocol: test videos against training videos. `progress` is called with (judged, to judge).

    Returns:
        Metrics by label column and source: {"motion": {"features": {"top1": 0.7}, ...}, ...}.

    Raises:
        DataError: there are no labels, too few label columns, or one side of the split is empty.
    """
    train, test = features.of_split("train"), features.of_split("test")
    if not train.records or not test.records:
        raise DataError(
            f"nothing to judge: {len(train.records)} training and {len(test.records)} test videos. Give the set labels "
            "(class folders, or a `label` column), so that test videos can be held out, or a `split` column."
        )
    columns = list(train.records[0].labels)
    if not columns:
        raise DataError("the videos have no labels. Give class folders, or a `label` column in a CSV manifest.")
    if protocol == "factors" and len(columns) < 2:
        raise DataError(
            "`factors` shows which of several labels can be read from which branch and level, but the videos have only "
            f"`{columns[0]}`. Give a CSV manifest with two or more columns named label_..., or use `linear`."
        )
    metric = _METRICS[protocol]
    results: dict[str, dict[str, Metrics]] = {column: {} for column in columns}
    pairs = [(column, source) for column in columns for source in sources]
    for done, (column, source) in enumerate(pairs, 1):
        results[column][source] = metric(train, test, sources[source], column, experiment)
        if progress:
            progress(done, len(pairs))
    return results


def chance(features: VideoFeatures, column: str) -> float:
    """Top-1 of always naming the most frequent class of the test videos."""
    labels = [record.labels[column] for record in features.of_split("test").records]
    return max(labels.count(label) for label in set(labels)) / len(labels)


def _labels(features: VideoFeatures, column: str) -> list[str]:
    return [record.labels[column] for record in features.records]


def _top1(predicted: Iterable[str], labels: Sequence[str]) -> Metrics:
    return {"top1": sum(p == label for p, label in zip(predicted, labels, strict=True)) / len(labels)}


def _linear(
    train: VideoFeatures, test: VideoFeatures, names: Sequence[str], column: str, experiment: Experiment
) -> Metrics:
    train_features, test_features = joined(train, test, names)
    groups = [record.group or record.video_id for record in train.records]
    predicted, penalty = linear_probe(
        train_features, _labels(train, column), test_features, groups, experiment.evaluate.linear_l2
    )
    return _top1(predicted, _labels(test, column)) | {"l2": penalty}


def _knn(
    train: VideoFeatures, test: VideoFeatures, names: Sequence[str], column: str, experiment: Experiment
) -> Metrics:
    train_features, test_features = joined(train, test, names)
    settings = experiment.evaluate
    predicted = knn_predict(
        cosine_similarity(test_features, train_features),
        _labels(train, column),
        settings.knn_neighbours,
        settings.knn_temperature,
    )
    return _top1(predicted, _labels(test, column))


def _retrieval(
    train: VideoFeatures, test: VideoFeatures, names: Sequence[str], column: str, experiment: Experiment
) -> Metrics:
    train_features, test_features = joined(train, test, names)
    similarity = cosine_similarity(test_features, train_features)
    recalls = recall_at(similarity, _labels(test, column), _labels(train, column), experiment.evaluate.recall_at)
    return {f"R@{k}": value for k, value in recalls.items()}


_METRICS: dict[str, Callable[..., Metrics]] = {
    "linear": _linear,
    "knn": _knn,
    "retrieval": _retrieval,
    "factors": _linear,
}
