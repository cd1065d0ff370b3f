"""Protocols on frozen features: extract the features of every network once, then run the judge of each protocol."""

from hdc_keras.data.from_experiment import frame_store
from hdc_keras.data.preparing import Part
from hdc_keras.evaluation.context import NETWORK_TITLES, Evaluation
from hdc_keras.evaluation.result import ProtocolOutcomes
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import Extraction
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.registry import PROBES, chance, feature_sources, judge
from hdc_keras.results.outcomes import Outcome


def extractions(evaluation: Evaluation, needs_views: bool) -> dict[str, Extraction]:
    """The extraction of the features of the videos of all splits, for each network, to `features/` of the output.

    Views are kept even if they are not needed: a protocol that needs them then decodes no video again.

    Args:
        evaluation: networks, videos and settings.
        needs_views: whether some protocol needs the features of individual views.
    """
    experiment = evaluation.experiment
    frames = frame_store(experiment)
    videos = list({record.video_id: record for records in evaluation.splits.values() for record in records}.values())
    found = {}
    for name, network in evaluation.networks.items():
        encoder = ClipEncoder(network, experiment.data.decode_size, experiment.evaluate.crops)
        folder = evaluation.output.feature_folder
        store = FeatureStore(folder, encoder, experiment, needs_views, keeps_views=True)
        found[name] = Extraction(encoder, videos, experiment, frames, store)
    return found


def extract(evaluation: Evaluation, extractions: dict[str, Extraction], part: Part = Part()) -> None:
    """Run the extractions, or a part of them, and show the progress of each."""
    for name, extraction in extractions.items():
        extraction.run(part, evaluation.report(f"features, {NETWORK_TITLES[name]}"))


def judge_features(evaluation: Evaluation, protocol: str, features: dict[str, VideoFeatures]) -> ProtocolOutcomes:
    """Run a protocol on the features of each network, split by split.

    Args:
        evaluation: splits, seeds and settings.
        protocol: a name in `PROBES`.
        features: the features of all videos, for each network.

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
    reduced = probe.publication.reduced(evaluation.experiment)
    return ProtocolOutcomes(
        {"version": probe.version, "source": probe.source, "settings": used, "reduced": reduced},
        {"asked": pretrained.asked, "decoded": len(pretrained.records), "failed": pretrained.causes},
        {column: chance(first_split, column) for column in first_split.of_split("train").records[0].labels},
        outcomes,
    )
