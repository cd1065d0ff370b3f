"""The protocols on frozen features, by name, and the function that runs one."""

from collections import Counter
from collections.abc import Callable, Sequence

from hdc_keras.config import EvaluateConfig
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.linear import LINEAR
from hdc_keras.probes.low_label import LOW_LABEL
from hdc_keras.probes.nearest_neighbours import KNN, RETRIEVAL, RETRIEVAL_VCOP
from hdc_keras.probes.protocol import Answer, Protocol, Question
from hdc_keras.probes.sgd import LINEAR_CVRL, LINEAR_SEVERE

PROBES: dict[str, Protocol] = {
    "linear": LINEAR,
    "linear-cvrl": LINEAR_CVRL,
    "linear-severe": LINEAR_SEVERE,
    "knn": KNN,
    "retrieval": RETRIEVAL,
    "retrieval-vcop": RETRIEVAL_VCOP,
    "lowlabel": LOW_LABEL,
    "factors": LINEAR,
}

# Squares of larger features, summed over the videos of a large set, overflow float32.
_MOST = 1e15


def feature_sources(protocol: str, levels: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """List the sources that a protocol is applied to, one after the other.

    The sources are the features of all levels together (of the last level, if the protocol's publication uses only
    that), the features of each level, the embeddings of each task at all its levels, and all embeddings together.
    `factors` adds the embedding of each head.

    Args:
        protocol: a name in `PROBES`.
        levels: levels of the model, the last one last.
        pairs: each (level, task) that has a head.

    Returns:
        The names of the feature arrays to concatenate, by the name of the source.
    """
    sources = {"features": list(levels[-1:] if PROBES[protocol].uses_last_level else levels)}
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
    """Run a protocol on frozen features: fit on the training videos, evaluate on the test videos.

    Args:
        protocol: a name in `PROBES`.
        features: features of videos with splits and labels.
        sources: the feature arrays to apply it to, as returned by `feature_sources`.
        settings: the `evaluate` section of the experiment.
        seeds: seeds to repeat it with. Protocols without randomness run once, with the first seed.
        progress: called with (questions answered, total questions).

    Returns:
        An answer for each label column, source and seed.

    Raises:
        DataError: there are no labels, too few label columns or classes, or no training or no test videos; or the
            features are non-finite or too large.
    """
    _require_moderate(features, sources)
    train, test = features.of_split("train"), features.of_split("test")
    columns = require_labels(protocol, features.records)
    probe = PROBES[protocol]
    used_seeds = list(seeds) if probe.is_random else list(seeds)[:1]
    used_seeds += [max(used_seeds) + 1 + extra for extra in range(probe.least_seeds - len(used_seeds))]
    answers = {}
    total = len(sources) * len(columns) * len(used_seeds)
    for source, names in sources.items():
        prepared = probe.prepare(train, test, names, settings) if probe.prepare else None
        for column in columns:
            for seed in used_seeds:
                judgement = probe.judge(Question(train, test, names, column, settings, seed, prepared))
                answers[column, source, seed] = Answer(column, source, seed, judgement)
                if progress:
                    progress(len(answers), total)
    return [answers[column, source, seed] for column in columns for source in sources for seed in used_seeds]


def _require_moderate(features: VideoFeatures, sources: dict[str, list[str]]) -> None:
    """Refuse features whose deviation or length would overflow float32."""
    for name in dict.fromkeys(name for names in sources.values() for name in names):
        array = features.arrays[name]
        # Written so that NaN is refused too.
        if array.size and not (array.min() > -_MOST and array.max() < _MOST):
            raise DataError(
                f"the features {name} are non-finite or larger than {_MOST:g}: the network has diverged. Evaluate an "
                "earlier checkpoint, or train again with a lower train.learning_rate."
            )


def untrained_classes(records: Sequence[VideoRecord], column: str) -> dict[str, int]:
    """The classes that have test videos but no training videos, with the number of these test videos."""
    trained = {record.labels[column] for record in records if record.split == "train"}
    tested = Counter(record.labels[column] for record in records if record.split == "test")
    return {label: count for label, count in sorted(tested.items()) if label not in trained}


def require_labels(protocol: str, records: Sequence[VideoRecord], validates: bool = False) -> list[str]:
    """Check that a protocol can evaluate the videos, and return their label columns. No video is read.

    Args:
        protocol: name of the protocol.
        records: videos with splits.
        validates: whether the protocol uses the labels of the "val" split too.

    Raises:
        DataError: there are no training or no test videos, no labels, or training videos of one class only; some videos
            have no labels; or the protocol needs more label columns.
    """
    train, test = ([record for record in records if record.split == split] for split in ("train", "test"))
    if not train or not test:
        unlabelled = [record.video_id for record in records if not record.labels]
        if unlabelled and len(unlabelled) < len(records) and not test:
            raise DataError(
                f"{len(unlabelled)} of {len(records)} videos have no label, such as {unlabelled[0]}, so no test videos "
                "can be held out. Add the labels, leave these videos out, or say in a column `split` which are for the "
                "test."
            )
        if not unlabelled:
            raise DataError(
                f"there are {len(train)} training and {len(test)} test videos, but both are needed. Say in the column "
                "`split` which are for the test (`test`) and which for training (`train`), or leave the column out: a "
                "part of each class is then held out for the test."
            )
        raise DataError(
            f"evaluation needs training and test videos, but there are {len(train)} training and "
            f"{len(test)} test videos. Add labels (class folders, or a `label` column), so that videos of "
            "each class are held out for testing, or add a `split` column."
        )
    used = train + test + [record for record in records if validates and record.split == "val"]
    columns = list(dict.fromkeys(column for record in used for column in record.labels))
    if not columns:
        raise DataError("the videos have no labels. Use class folders, or a CSV manifest with a `label` column.")
    for column in columns:
        unlabelled = [record.video_id for record in used if column not in record.labels]
        if unlabelled:
            raise DataError(
                f"{len(unlabelled)} of {len(used)} videos have no `{column}`, such as {unlabelled[0]}. Evaluation "
                "needs the labels of every video. Add them, or leave these videos out of the set."
            )
    for column in columns:
        classes = {record.labels[column] for record in train}
        if len(classes) < 2:
            raise DataError(
                f"all training videos have the same `{column}`, {classes.pop()}. Evaluation needs two or more classes."
            )
    if protocol == "factors" and len(columns) < 2:
        raise DataError(
            "`factors` shows which of several labels can be predicted from which task and level, but the videos have "
            f"only `{columns[0]}`. Use a CSV manifest with two or more columns named label_..., or evaluate `linear`."
        )
    return columns


def chance(features: VideoFeatures, column: str) -> float:
    """Top-1 accuracy, in [0, 1], of always predicting the most frequent class of the test videos."""
    labels = [record.labels[column] for record in features.of_split("test").records]
    return max(labels.count(label) for label in set(labels)) / len(labels)
