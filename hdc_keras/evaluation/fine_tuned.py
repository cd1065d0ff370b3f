"""Fine-tuning protocols: train every network with labels, for each split, seed and label column."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hdc_keras.data.from_experiment import frame_store
from hdc_keras.data.records import VideoRecord
from hdc_keras.evaluation.context import NETWORK_TITLES, Evaluation
from hdc_keras.evaluation.result import ProtocolOutcomes
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.finetuning.job import FineTuningJob, fine_tune
from hdc_keras.finetuning.recipes import FINE_TUNING, PUBLICATIONS, FineTuning, changed
from hdc_keras.finetuning.validation_split import hold_out
from hdc_keras.probes.protocol import Answer, judged_by_scores
from hdc_keras.probes.registry import chance, require_labels
from hdc_keras.results.outcomes import Outcome


def judge_fine_tuned(evaluation: Evaluation, protocol: str) -> ProtocolOutcomes:
    """Run a fine-tuning protocol. Each training is kept in the run's `fine-tuning/`, and resumes after an interruption.

    Args:
        evaluation: networks, splits, seeds and settings.
        protocol: a name in `FINE_TUNING`.

    Raises:
        DataError: the videos cannot be evaluated (see `require_labels`), or too many cannot be decoded.
        StoppedError: a signal stopped a training.
        TrainingError: a loss was non-finite.
    """
    experiment, published = evaluation.experiment, FINE_TUNING[protocol]
    store = frame_store(experiment)
    recipes: dict[str, FineTuning] = {}
    outcomes: list[Outcome] = []
    tested: set[str] = set()
    decoded: set[str] = set()
    failed: dict[str, str] = {}
    training_failed: dict[str, str] = {}
    baselines: dict[str, float] = {}
    for split, records in evaluation.splits.items():
        videos = _without_features(records)
        columns = require_labels(protocol, records, published.validation > 0)
        baselines = baselines or {column: chance(videos, column) for column in columns}
        test = videos.of_split("test").records
        tested |= {record.video_id for record in test}
        for seed in evaluation.seeds:
            for column in columns:
                train, validation = hold_out(records, published.validation, column, seed)
                recipe = published.applied(experiment).fitted(len(train), bool(validation))
                recipes[f"split {split}, seed {seed}, {column}"] = recipe
                for name, network in evaluation.networks.items():
                    job = FineTuningJob(
                        title=evaluation.title(protocol, column, NETWORK_TITLES[name], split=split, seed=seed),
                        recipe=recipe,
                        backbone=None if name == "random_weights" else network.backbone,
                        experiment=experiment,
                        train=train,
                        validation=validation,
                        test=test,
                        column=column,
                        seed=seed,
                        saves_classifier=name != "random_weights",
                    )
                    scores = fine_tune(job, evaluation.output.fine_tuning_folder, store, evaluation.progress)
                    labels = [record.labels[column] for record in scores.records]
                    judgement = judged_by_scores(scores.scores, job.classes, labels)
                    outcomes.append(Outcome(name, split, Answer(column, "fine-tuned", seed, judgement), scores.records))
                    decoded |= {record.video_id for record in scores.records}
                    failed |= scores.failed
                    training_failed |= scores.training_failed
    return ProtocolOutcomes(
        {
            "version": published.version,
            "source": published.source,
            "settings": merged({where: asdict(recipe) for where, recipe in recipes.items()}),
            "reduced": all_changed(published, recipes) | PUBLICATIONS[protocol].reduced(experiment),
        },
        {
            "asked": len(tested),
            "decoded": len(decoded),
            "failed": failed,
            "training_failed": training_failed,
        },
        baselines,
        outcomes,
    )


def merged(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the settings of several trainings: a value that differs between them becomes a dict, by training."""
    found: dict[str, Any] = {}
    for name in next(iter(settings.values())):
        values = {where: one[name] for where, one in settings.items()}
        first = next(iter(values.values()))
        found[name] = first if all(value == first for value in values.values()) else values
    return found


def all_changed(published: FineTuning, recipes: Mapping[str, FineTuning]) -> dict[str, list[Any]]:
    """List what differs from the published recipe in any of several trainings: [published, used] by name."""
    differences = {where: changed(published, recipe) for where, recipe in recipes.items()}
    before = {name: pair[0] for pairs in differences.values() for name, pair in pairs.items()}
    used = merged(
        {
            where: {name: pairs[name][1] if name in pairs else value for name, value in before.items()}
            for where, pairs in differences.items()
        }
    )
    return {name: [value, used[name]] for name, value in before.items()}


def _without_features(records: Sequence[VideoRecord]) -> VideoFeatures:
    return VideoFeatures(list(records), {}, len(records), {})
