"""Protocols on the frozen features of a run: extract those of every network once, then judge them."""

from hdc_keras.data.from_experiment import frame_store
from hdc_keras.data.preparing import Part
from hdc_keras.evaluation.context import NETWORK_TITLES, Evaluation
from hdc_keras.evaluation.judging import judge_sources
from hdc_keras.evaluation.result import ProtocolOutcomes
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import Extraction
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.registry import feature_sources


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
    model = evaluation.networks["metrics"]
    levels = set(model.contrast_config.used_levels)
    sources = feature_sources(protocol, model.contrast_config.used_levels, model.objective.pairs)
    # The supervised network has no projection heads.
    level_sources = {source: names for source, names in sources.items() if set(names) <= levels}
    sources_of = {name: level_sources if name == "supervised" else sources for name in features}
    return judge_sources(evaluation, protocol, features, sources_of)
