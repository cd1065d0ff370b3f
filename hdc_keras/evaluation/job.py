"""The evaluation job: from a run directory and a protocol to a result."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment
from hdc_keras.data.records import VideoRecord, at_most_per_class
from hdc_keras.encoder import ClipEncoder
from hdc_keras.errors import ConfigError
from hdc_keras.evaluation.factors import draw_factors
from hdc_keras.evaluation.features import VideoFeatures, extract_features
from hdc_keras.evaluation.protocols import PROTOCOLS, chance, feature_sources, judge
from hdc_keras.model import HDC
from hdc_keras.training.run import build_model, frame_store
from hdc_keras.training.run_directory import RunDirectory, digest

Progress = Callable[[str, int, int], None]


def evaluate(
    run: RunDirectory,
    experiment: Experiment,
    records: Sequence[VideoRecord],
    protocols: Sequence[str],
    progress: Progress | None = None,
    supervised: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Judge the run's newest checkpoint beside the same network with random weights, and write the results.

    Features are extracted once for all protocols.

    Args:
        run: the run to judge.
        experiment: the run's own, or a copy with other `data` or `evaluate`.
        records: videos with splits and labels; training videos fit the judge, test videos are judged.
        protocols: names in `PROTOCOLS`.
        progress: called with (what is being done, done, in all).
        supervised: torchvision's Kinetics weights of the same network, a `.pth` file, to be judged beside it: what
            training with labels gives. Its features are judged; it has no heads.

    Returns:
        Result by protocol, as written to `results/{protocol}-{data}.json`; `factors` also leaves a bar chart as `.png`.

    Raises:
        ConfigError: an unknown protocol.
        DataError: no labels, an empty split, or too many bad videos.
        RunError: no checkpoint, or one that does not fit.
        WeightsError: `supervised` does not fit.
    """
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown:
        raise ConfigError(f"unknown protocol `{unknown[0]}`. Known: {', '.join(PROTOCOLS)}.")
    model, checkpoint = run.load_checkpoint()
    used = [record for record in records if record.split == "train"]
    if experiment.evaluate.labels_per_class:
        used = at_most_per_class(used, experiment.evaluate.labels_per_class, experiment.seed)
    used += [record for record in records if record.split == "test"]
    store = frame_store(experiment)

    def reporter(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress else None

    def untrained(weights: str | None) -> HDC:
        section = experiment.model.model_copy(update={"weights": weights})
        return build_model(experiment.model_copy(update={"model": section}))

    networks = {"metrics": ("pretrained", model), "random_weights": ("random weights", untrained(None))}
    if supervised:
        networks["supervised"] = ("supervised", untrained(supervised))
    features: dict[str, VideoFeatures] = {}
    for title, network in networks.values():
        encoder = ClipEncoder(network, experiment.data.decode_size)
        features[title] = extract_features(encoder, used, experiment, store, reporter(f"features, {title}"))
    results = {}
    for protocol in protocols:
        sources = feature_sources(protocol, model.contrast.used_levels, model.pairs)
        levels_only = {name: parts for name, parts in sources.items() if set(parts) <= set(model.contrast.used_levels)}
        judged = {
            key: judge(
                protocol,
                features[title],
                levels_only if key == "supervised" else sources,
                experiment,
                reporter(f"{protocol}, {title}"),
            )
            for key, (title, _) in networks.items()
        }
        results[protocol] = {
            "protocol": protocol,
            "version": PROTOCOLS[protocol],
            "dataset": experiment.data.path or "moving-shapes",
            "split": {s: len(features["pretrained"].of_split(s).records) for s in ("train", "test")},
            "architecture": model.backbone.name,
            "checkpoint": checkpoint.name,
            "weights_sha256": digest(checkpoint),
            "seed": experiment.seed,
            "clips": experiment.evaluate.clips,
            "counts": {
                "asked": len(used),
                "decoded": len(features["pretrained"].records),
                "failed": features["pretrained"].failed,
            },
            "chance": {column: chance(features["pretrained"], column) for column in judged["metrics"]},
            **judged,
        }
        name = f"results/{protocol}-{Path(results[protocol]['dataset']).stem}"
        run.write_text(f"{name}.json", json.dumps(results[protocol], indent=2))
        if protocol == "factors":
            run.write_bytes(f"{name}.png", draw_factors(results[protocol]))
    return results
