"""Protocols on frozen features: extract the features of every network once, then run the judge of each protocol."""

from hdc_keras.data.from_experiment import frame_store
from hdc_keras.evaluation.context import NETWORK_TITLES, Evaluation
from hdc_keras.evaluation.result import ProtocolOutcomes
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.registry import PROBES, chance, feature_sources, judge
from hdc_keras.results.outcomes import Outcome


def features_by_network(evaluation: Evaluation, keep_views: bool) -> dict[str, VideoFeatures]:
    """Extract the features of the videos of all splits, for each network; they are cached in the run's `features/`.

    Args:
        evaluation: networks, videos and settings.
        keep_views: whether some protocol needs the features of individual views.
    """
    experiment = evaluation.experiment
    store = frame_store(experiment)
    videos = list({record.video_id: record for records in evaluation.splits.values() for record in records}.values())
    return {
        name: extract_features(
            ClipEncoder(network, experiment.data.decode_size, experiment.evaluate.crops),
            videos,
            experiment,
            store,
            evaluation.report(f"features, {NETWORK_TITLES[name]}"),
            FeatureStore(evaluation.run.feature_folder),
            keep_views,
        )
        for name, network in evaluation.networks.items()
    }


def judge_features(evaluation: Evaluation, protocol: str, features: dict[str, VideoFeatures]) -> ProtocolOutcomes:
    """Run a protocol on the features of each network, split by split.

    Args:
        evaluation: splits, seeds and settings.
        protocol: a name in `PROBES`.
        features: as returned by `features_by_network`.

    Raises:
        DataError: the videos cannot be evaluated (see `probes.registry.judge`).
    """
    model, settings = evaluation.networks["metrics"], evaluation.experiment.evaluate
    levels = set(model.contrast_config.used_levels)
    all_sources = feature_sources(protocol, model.contrast_config.used_levels, model.objective.pairs)
    # The supervised network has no projection heads.
    level_sources = {source: names for source, names in all_sources.items() if set(names) <= levels}
    outcomes = []
    for name, network_features in features.items():
        sources = level_sources if name == "supervised" else all_sources
        for split, records in evaluation.splits.items():
            split_features = network_features.select(records)
            report = evaluation.report(evaluation.title(protocol, NETWORK_TITLES[name], split=split))
            answers = judge(protocol, split_features, sources, settings, evaluation.seeds, report)
            test = split_features.of_split("test").records
            outcomes += [Outcome(name, split, answer, test) for answer in answers]
    pretrained = features["metrics"]
    first_split = pretrained.select(next(iter(evaluation.splits.values())))
    probe = PROBES[protocol]
    used = {**probe.settings(settings), "labels_per_class": settings.labels_per_class}
    return ProtocolOutcomes(
        {"version": probe.version, "source": probe.source, "settings": used, "reduced": {}},
        {"asked": pretrained.asked, "decoded": len(pretrained.records), "failed": pretrained.failed},
        {column: chance(first_split, column) for column in first_split.of_split("train").records[0].labels},
        outcomes,
    )
