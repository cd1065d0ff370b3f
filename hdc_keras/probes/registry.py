"""The protocols that judge frozen features, by name."""

from collections.abc import Callable, Sequence

from hdc_keras.config import EvaluateConfig
from hdc_keras.errors import DataError
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.linear import LINEAR
from hdc_keras.probes.low_label import LOW_LABEL
from hdc_keras.probes.nearest_neighbours import KNN, RETRIEVAL
from hdc_keras.probes.protocol import Answer, Protocol, Question
from hdc_keras.probes.sgd import LINEAR_CVRL, LINEAR_SEVERE

PROBES: dict[str, Protocol] = {
    "linear": LINEAR,
    "linear-cvrl": LINEAR_CVRL,
    "linear-severe": LINEAR_SEVERE,
    "knn": KNN,
    "retrieval": RETRIEVAL,
    "lowlabel": LOW_LABEL,
    "factors": LINEAR,
}


def feature_sources(protocol: str, levels: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """What a protocol judges: all levels' features together, each level's, each task's embeddings of all its levels,
    and all embeddings together. `factors` adds each head's embedding.

    Args:
        protocol: a name in `PROBES`.
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
    if len({task for _, task in pairs}) > 1:
        sources["all embeddings"] = [f"{level}_{task}" for level, task in pairs]
    if protocol == "factors" and len(pairs) > 1:
        sources |= {f"{level} {task} embedding": [f"{level}_{task}"] for level, task in pairs}
    return sources


def judge(
    protocol: str,
    features: VideoFeatures,
    sources: dict[str, list[str]],
    settings: EvaluateConfig,
    seeds: Sequence[int] = (0,),
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Run one protocol on frozen features: test videos against training videos.

    Args:
        protocol: a name in `PROBES`.
        features: of videos with splits.
        sources: as `feature_sources` gives them.
        settings: of the evaluation.
        seeds: a protocol that draws nothing is asked once, with the first.
        progress: called with (judged, to judge).

    Raises:
        DataError: there are no labels, too few label columns or classes, or one side of the split is empty.
    """
    train, test = features.of_split("train"), features.of_split("test")
    columns = require_labels(train, test)
    if protocol == "factors" and len(columns) < 2:
        raise DataError(
            "`factors` shows which of several labels can be read from which branch and level, but the videos have only "
            f"`{columns[0]}`. Give a CSV manifest with two or more columns named label_..., or use `linear`."
        )
    chosen = PROBES[protocol]
    asked = list(seeds) if chosen.is_random else list(seeds)[:1]
    asked += [max(asked) + 1 + extra for extra in range(chosen.least_seeds - len(asked))]
    questions = [(column, source, seed) for column in columns for source in sources for seed in asked]
    answers = []
    for done, (column, source, seed) in enumerate(questions, 1):
        judgement = chosen.judge(Question(train, test, sources[source], column, settings, seed))
        answers.append(Answer(column, source, seed, judgement))
        if progress:
            progress(done, len(questions))
    return answers


def require_labels(train: VideoFeatures, test: VideoFeatures) -> list[str]:
    """The label columns that can be judged. Raises `DataError` when none can."""
    if not train.records or not test.records:
        raise DataError(
            f"nothing to judge: {len(train.records)} training and {len(test.records)} test videos. Give the set labels "
            "(class folders, or a `label` column), so that test videos can be held out, or a `split` column."
        )
    columns = list(train.records[0].labels)
    if not columns:
        raise DataError("the videos have no labels. Give class folders, or a `label` column in a CSV manifest.")
    for column in columns:
        classes = {record.labels[column] for record in train.records}
        if len(classes) < 2:
            raise DataError(f"all training videos have the same `{column}`, {classes.pop()}: there is nothing to tell.")
    return columns


def chance(features: VideoFeatures, column: str) -> float:
    """Top-1 of always naming the most frequent class of the test videos."""
    labels = [record.labels[column] for record in features.of_split("test").records]
    return max(labels.count(label) for label in set(labels)) / len(labels)
