"""The evaluation job: run protocols on the network of a run, and write the results."""

from collections.abc import Sequence
from typing import Any

from hdc_keras.config import Experiment
from hdc_keras.errors import ConfigError
from hdc_keras.evaluation.context import Evaluation, Progress
from hdc_keras.evaluation.fine_tuned import judge_fine_tuned
from hdc_keras.evaluation.frozen import features_by_network, judge_features
from hdc_keras.evaluation.protocols import require_known
from hdc_keras.evaluation.result import write_outcomes
from hdc_keras.evaluation.splits import Splits, with_labels_per_class
from hdc_keras.finetuning.recipes import FINE_TUNING
from hdc_keras.model import HDC
from hdc_keras.probes.registry import PROBES, require_labels
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.distribution import is_multi_process
from hdc_keras.training.models import build_model


def evaluate(
    run: RunDirectory,
    experiment: Experiment,
    splits: Splits,
    protocols: Sequence[str],
    progress: Progress | None = None,
    supervised: str | None = None,
    best: bool = False,
) -> dict[str, dict[str, Any]]:
    """Evaluate a checkpoint of a run and the same network with random weights, and write the results.

    Features are extracted once for all protocols and splits, and cached in the run's `features/`; fine-tunings are
    kept in its `fine-tuning/`. After an interruption, the same call does only the work that is missing.

    Args:
        run: the run to evaluate.
        experiment: the experiment of the run, or a copy with other `data` or `evaluate` sections.
        splits: labelled videos of each split, by its name, as returned by `load_splits`.
        protocols: names in `PROTOCOLS`.
        progress: called with (description of the current task, items done, total items).
        supervised: a `.pth` file with torchvision's Kinetics weights of the same network, to evaluate as well. It shows
            what training with labels achieves. It has no projection heads, so only its features are evaluated.
        best: evaluate the best checkpoint instead of the newest.

    Returns:
        The result of each protocol, by its name, as written to `results/{protocol}-{data}.json`. `factors` also writes
        a bar chart as `.png`.

    Raises:
        ConfigError: a protocol is unknown, or several processes were started.
        DataError: there are no labels, a split has no training or no test videos, or too many videos cannot be decoded.
        RunError: there is no checkpoint, it does not belong to the run, or a file cannot be written.
        StoppedError: a signal stopped a fine-tuning.
        TrainingError: the loss of a fine-tuning was non-finite.
        WeightsError: the `supervised` weights do not fit the network.
    """
    require_known(protocols)
    if is_multi_process():
        raise ConfigError("evaluation runs in one process, which can use all GPUs of its machine. Start it only once.")
    run.require_writable("results")
    used = {name: with_labels_per_class(records, experiment) for name, records in splits.items()}
    for protocol in protocols:
        validates = protocol in FINE_TUNING and FINE_TUNING[protocol].validation > 0
        for records in used.values():
            require_labels(protocol, records, validates)
    model, checkpoint = run.checkpoints.load(best=best)
    networks = {"metrics": model, "random_weights": _new_network(experiment, None)}
    if supervised:
        networks["supervised"] = _new_network(experiment, supervised)
    evaluation = Evaluation(run, experiment, used, networks, checkpoint, progress)

    on_features = [name for name in protocols if name in PROBES]
    keep_views = any(PROBES[name].needs_views for name in on_features)
    features = features_by_network(evaluation, keep_views) if on_features else {}
    results = {}
    for protocol in protocols:
        if protocol in PROBES:
            found = judge_features(evaluation, protocol, features)
        else:
            found = judge_fine_tuned(evaluation, protocol)
        results[protocol] = write_outcomes(evaluation, protocol, found)
    return results


def _new_network(experiment: Experiment, weights: str | None) -> HDC:
    """Build the run's network with random weights, or with weights from a file. `init_from` is ignored."""
    section = experiment.model.model_copy(update={"weights": weights, "init_from": None})
    return build_model(experiment.model_copy(update={"model": section}))
