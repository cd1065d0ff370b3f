"""The evaluation job: from a run directory and protocols to results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import frame_store, load_videos
from hdc_keras.data.records import VideoRecord, at_most_per_class
from hdc_keras.errors import ConfigError, DataError
from hdc_keras.evaluation.factors_chart import draw_factors
from hdc_keras.evaluation.protocols import require_known
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.files import digest
from hdc_keras.finetuning.job import FineTuningJob, fine_tune, hold_out
from hdc_keras.finetuning.recipes import FINE_TUNING, changed
from hdc_keras.model import HDC
from hdc_keras.probes.protocol import Answer, judged_by_scores
from hdc_keras.probes.registry import PROBES, chance, feature_sources, judge, require_labels
from hdc_keras.results.outcomes import Outcome, summarise
from hdc_keras.results.store import write_result
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.distribution import is_multi_process
from hdc_keras.training.models import build_model

Progress = Callable[[str, int, int], None]
Splits = Mapping[str, Sequence[VideoRecord]]

_TITLES = {"metrics": "pretrained", "random_weights": "random weights", "supervised": "supervised"}


@dataclass(frozen=True)
class _Evaluation:
    """What all protocols of one command share."""

    run: RunDirectory
    experiment: Experiment
    splits: Splits
    networks: dict[str, HDC]
    checkpoint: Path
    progress: Progress | None

    def report(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(what, done, total) if self.progress else None

    @property
    def seeds(self) -> list[int]:
        """`evaluate.seeds` of them, from the run's own on."""
        return list(range(self.experiment.seed, self.experiment.seed + self.experiment.evaluate.seeds))


def load_splits(
    experiment: Experiment, which: str, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, list[VideoRecord]], list[str]]:
    """The experiment's videos by the name of the split, and what a user should know.

    Args:
        experiment: which videos.
        which: "own" for the one of `data.official_split`; "all" for the three official splits of UCF101 and HMDB51.
        progress: called with (videos rendered, videos in all).

    Raises:
        ConfigError: `which` is neither.
        DataError: "all", but the set has no official splits.
    """
    if which not in ("own", "all"):
        raise ConfigError(f"--splits {which}: expected own or all.")
    first = load_videos(experiment, progress)
    if which == "own":
        return {str(experiment.data.official_split): first.records}, first.notes
    splits = {}
    for number in (1, 2, 3):
        data = experiment.data.model_copy(update={"official_split": number})
        splits[str(number)] = load_videos(experiment.model_copy(update={"data": data})).records
    if _sides(splits["1"]) == _sides(splits["2"]):
        raise DataError(
            f"--splits all: {experiment.data.path or 'moving shapes'} has no official splits. Only UCF101 and HMDB51 "
            "have three; they are read from video files, with their lists."
        )
    return splits, first.notes


def _sides(records: Sequence[VideoRecord]) -> dict[str, str | None]:
    return {record.video_id: record.split for record in records}


def evaluate(
    run: RunDirectory,
    experiment: Experiment,
    splits: Splits,
    protocols: Sequence[str],
    progress: Progress | None = None,
    supervised: str | None = None,
    best: bool = False,
) -> dict[str, dict[str, Any]]:
    """Judge a checkpoint of the run beside the same network with random weights, and write the results.

    Features are extracted once for all protocols and splits, and kept in the run's `features/`; trainings are kept in
    its `fine-tuning/`. Interrupted, the same call goes on from what is there.

    Args:
        run: the run to judge.
        experiment: the run's own, or a copy with other `data` or `evaluate`.
        splits: videos with splits and labels, by the name of the split; training videos fit the judge, test videos are
            judged.
        protocols: names in `PROTOCOLS`.
        progress: called with (what is being done, done, in all).
        supervised: torchvision's Kinetics weights of the same network, a `.pth` file, to be judged beside it: what
            training with labels gives. Its features are judged; it has no heads.
        best: judge the best checkpoint instead of the newest.

    Returns:
        Result by protocol, as written to `results/{protocol}-{data}.json`; `factors` also leaves a bar chart as `.png`.

    Raises:
        ConfigError: an unknown protocol, or several processes.
        DataError: no labels, an empty split, or too many bad videos.
        RunError: no checkpoint, or one that does not fit.
        StoppedError: a signal came.
        WeightsError: `supervised` does not fit.
    """
    require_known(protocols)
    if is_multi_process():
        raise ConfigError("evaluation runs in one process, which may use all GPUs of its machine: start it only once.")
    model, checkpoint = run.checkpoints.load(best=best)
    networks = {"metrics": model, "random_weights": _untrained(experiment, None)}
    if supervised:
        networks["supervised"] = _untrained(experiment, supervised)
    used = {name: _used(records, experiment) for name, records in splits.items()}
    evaluation = _Evaluation(run, experiment, used, networks, checkpoint, progress)
    frozen = [name for name in protocols if name in PROBES]
    features = _features(evaluation, any(PROBES[name].needs_views for name in frozen)) if frozen else {}
    results = {}
    for protocol in protocols:
        if protocol in PROBES:
            results[protocol] = _judge_frozen(evaluation, protocol, features)
        else:
            results[protocol] = _judge_fine_tuned(evaluation, protocol)
    return results


def _untrained(experiment: Experiment, weights: str | None) -> HDC:
    section = experiment.model.model_copy(update={"weights": weights, "init_from": None})
    return build_model(experiment.model_copy(update={"model": section}))


def _used(records: Sequence[VideoRecord], experiment: Experiment) -> list[VideoRecord]:
    """The videos that are judged and learned from: with few labels, the training videos that have one."""
    kept = [record for record in records if record.split != "test"]
    if experiment.evaluate.labels_per_class:
        kept = at_most_per_class(kept, experiment.evaluate.labels_per_class, experiment.seed)
    return kept + [record for record in records if record.split == "test"]


def _features(evaluation: _Evaluation, keep_views: bool) -> dict[str, VideoFeatures]:
    """Features of all videos of all splits, by network."""
    experiment = evaluation.experiment
    store = frame_store(experiment)
    videos = list({record.video_id: record for records in evaluation.splits.values() for record in records}.values())
    return {
        name: extract_features(
            ClipEncoder(network, experiment.data.decode_size, experiment.evaluate.crops),
            videos,
            experiment,
            store,
            evaluation.report(f"features, {_TITLES[name]}"),
            FeatureStore(evaluation.run.feature_folder),
            keep_views,
        )
        for name, network in evaluation.networks.items()
    }


def _judge_frozen(evaluation: _Evaluation, protocol: str, features: dict[str, VideoFeatures]) -> dict[str, Any]:
    model, settings = evaluation.networks["metrics"], evaluation.experiment.evaluate
    every_source = feature_sources(protocol, model.contrast_config.used_levels, model.objective.pairs)
    levels = set(model.contrast_config.used_levels)
    outcomes = []
    for name, of_network in features.items():
        sources = every_source
        if name == "supervised":  # it has no heads
            sources = {source: parts for source, parts in every_source.items() if set(parts) <= levels}
        for split, records in evaluation.splits.items():
            of_split = of_network.select(records)
            title = ", ".join([protocol, _TITLES[name], *_which(evaluation, split)])
            answers = judge(protocol, of_split, sources, settings, evaluation.seeds, evaluation.report(title))
            test = of_split.of_split("test").records
            outcomes += [Outcome(name, split, answer, test) for answer in answers]
    judged = features["metrics"]
    counts = {"asked": judged.asked, "decoded": len(judged.records), "failed": judged.failed}
    chosen = PROBES[protocol]
    used = {**chosen.settings(settings), "labels_per_class": settings.labels_per_class}
    made = {"version": chosen.version, "source": chosen.source, "settings": used, "reduced": {}}
    first = judged.select(next(iter(evaluation.splits.values())))
    baselines = {column: chance(first, column) for column in first.records[0].labels}
    return _write(evaluation, protocol, made, counts, baselines, outcomes)


def _judge_fine_tuned(evaluation: _Evaluation, protocol: str) -> dict[str, Any]:
    experiment, published = evaluation.experiment, FINE_TUNING[protocol]
    store = frame_store(experiment)
    recipe = published.applied(experiment)
    outcomes: list[Outcome] = []
    tested: set[str] = set()
    failed: dict[str, str] = {}
    training_failed: dict[str, str] = {}
    baselines: dict[str, float] = {}
    for split, records in evaluation.splits.items():
        whole = VideoFeatures(list(records), {}, len(records), {})
        columns = require_labels(whole.of_split("train"), whole.of_split("test"))
        baselines = baselines or {column: chance(whole, column) for column in columns}
        test = whole.of_split("test").records
        tested |= {record.video_id for record in test}
        for seed in evaluation.seeds:
            for column in columns:
                train, validation = hold_out(records, published.validation, column, seed)
                recipe = published.applied(experiment).fitted(len(train), bool(validation))
                for name, network in evaluation.networks.items():
                    job = FineTuningJob(
                        ", ".join([protocol, column, _TITLES[name], *_which(evaluation, split, seed)]),
                        recipe,
                        None if name == "random_weights" else network.backbone,
                        experiment,
                        train,
                        validation,
                        test,
                        column,
                        seed,
                    )
                    scores = fine_tune(job, evaluation.run.fine_tuning_folder, store, evaluation.progress)
                    labels = [record.labels[column] for record in scores.records]
                    judgement = judged_by_scores(scores.scores, job.classes, labels)
                    outcomes.append(Outcome(name, split, Answer(column, "fine-tuned", seed, judgement), scores.records))
                    failed |= scores.failed
                    training_failed |= scores.training_failed
    counts = {
        "asked": len(tested),
        "decoded": len(tested) - len(failed),
        "failed": failed,
        "training_failed": training_failed,
    }
    reduced = changed(published, recipe)
    if experiment.evaluate.labels_per_class:
        reduced["labels_per_class"] = ["all", experiment.evaluate.labels_per_class]
    made = {
        "version": published.version,
        "source": published.source,
        "settings": asdict(recipe),
        "reduced": reduced,
    }
    return _write(evaluation, protocol, made, counts, baselines, outcomes)


def _which(evaluation: _Evaluation, split: str, seed: int | None = None) -> list[str]:
    """Which split and seed it is, where there are several."""
    named = [f"split {split}"] if len(evaluation.splits) > 1 else []
    return [*named, f"seed {seed}"] if seed is not None and len(evaluation.seeds) > 1 else named


def _write(
    evaluation: _Evaluation,
    protocol: str,
    made: dict[str, Any],
    counts: dict[str, Any],
    baselines: dict[str, float],
    outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    experiment = evaluation.experiment
    means, deviations, single = summarise(outcomes)
    first = next(iter(evaluation.splits.values()))
    result = {
        "protocol": protocol,
        **made,
        "dataset": experiment.data.path or "moving-shapes",
        "splits": list(evaluation.splits),
        "split": {side: sum(record.split == side for record in first) for side in ("train", "val", "test")},
        "architecture": evaluation.networks["metrics"].backbone.name,
        "checkpoint": evaluation.checkpoint.name,
        "weights_sha256": digest(evaluation.checkpoint),
        "seed": experiment.seed,
        "seeds": sorted({outcome.answer.seed for outcome in outcomes}),
        "clips": experiment.evaluate.clips,
        "views": f"{experiment.evaluate.clips}x{experiment.evaluate.crops}",
        "counts": counts,
        "chance": baselines,
        **means,
        "deviation": deviations,
        "repeats": single,
    }
    name = f"{protocol}-{Path(str(result['dataset'])).stem}"
    write_result(evaluation.run, name, result, outcomes)
    if protocol == "factors":
        evaluation.run.write_bytes(f"results/{name}.png", draw_factors(result))
    return result
