"""Run a protocol on frozen features, wherever they are from."""

from hdc_keras.evaluation.context import NETWORK_TITLES, Asked
from hdc_keras.evaluation.result import ProtocolOutcomes
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.registry import PROBES, chance, judge
from hdc_keras.results.outcomes import Outcome


def judge_sources(
    asked: Asked,
    protocol: str,
    features: dict[str, VideoFeatures],
    sources: dict[str, dict[str, list[str]]],
) -> ProtocolOutcomes:
    """Run a protocol on some of the features of each network, split by split.

    Args:
        asked: splits, seeds and settings.
        protocol: a name in `PROBES`.
        features: the features of all videos, for each network; the one that is judged is "metrics".
        sources: for each network, the feature arrays of each source.

    Raises:
        DataError: the videos cannot be evaluated (see `probes.registry.judge`).
    """
    settings, probe = asked.experiment.evaluate, PROBES[protocol]
    outcomes = []
    for name, network_features in features.items():
        for split, records in asked.splits.items():
            split_features = network_features.select(records)
            report = asked.report(asked.title(protocol, NETWORK_TITLES[name], split=split))
            answers = judge(protocol, split_features, sources[name], settings, asked.seeds, report)
            test = split_features.of_split("test").records
            outcomes += [Outcome(name, split, answer, test) for answer in answers]
    judged = features["metrics"]
    first_split = judged.select(next(iter(asked.splits.values())))
    used = {**probe.settings(settings), "labels_per_class": settings.labels_per_class}
    reduced = probe.publication.reduced(asked.experiment)
    return ProtocolOutcomes(
        {"version": probe.version, "source": probe.source, "settings": used, "reduced": reduced},
        {"asked": judged.asked, "decoded": len(judged.records), "failed": judged.causes},
        {column: chance(first_split, column) for column in first_split.of_split("train").records[0].labels},
        outcomes,
    )
