"""The evaluation job: run protocols on the network of a run, and write the results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment, dump_experiment
from hdc_keras.data.preparing import Part
from hdc_keras.errors import RunError
from hdc_keras.evaluation.checks import require_labelled, require_output, require_usable
from hdc_keras.evaluation.context import Evaluation, Progress
from hdc_keras.evaluation.fine_tuned import judge_fine_tuned
from hdc_keras.evaluation.frozen import extract, extractions, judge_features
from hdc_keras.evaluation.result import Subject, write_outcomes
from hdc_keras.evaluation.splits import Splits, with_labels_per_class
from hdc_keras.files import digest, write_text
from hdc_keras.model import HDC
from hdc_keras.probes.registry import PROBES
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.models import build_model


def evaluate(
    run: RunDirectory,
    experiment: Experiment,
    splits: Splits,
    protocols: Sequence[str],
    progress: Progress | None = None,
    supervised: str | None = None,
    best: bool = False,
    out: Path | None = None,
    part: Part = Part(),
    weights: str = "auto",
) -> dict[str, dict[str, Any]]:
    """Evaluate a checkpoint of a run and the same network with random weights, and write the results.

    Features are extracted once for all protocols and splits, and kept in the run's `features/`; fine-tunings are kept
    in its `fine-tuning/`. After an interruption, the same call does only the work that is missing. Several processes
    may extract features at once.

    Args:
        run: the run to evaluate.
        experiment: the experiment of the run, or a copy with other `data` or `evaluate` sections.
        splits: labelled videos of each split, by its name, as returned by `load_splits`.
        protocols: names in `PROTOCOLS`.
        progress: called with (description of the current task, items done, total items).
        supervised: a `.pth` file with torchvision's Kinetics weights of the same network, to evaluate as well. It shows
            what training with labels achieves. It has no projection heads, so only its features are evaluated.
        best: evaluate the best checkpoint instead of the newest.
        out: folder to write to instead of the run, which may be read-only.
        part: with more than one part, extract the features of this part only, and evaluate nothing.
        weights: "raw", "ema" for their moving averages, or "auto" for the averages if the run keeps them.

    Returns:
        The result of each protocol, by its name, as written to `results/{protocol}-{data}-{digest}.json`. `factors`
        also writes a bar chart as `.png`. Empty if only a part was extracted.

    Raises:
        ConfigError: a protocol is unknown or uses no features although `part` is given, `experiment` describes another
            network, or several processes were started.
        DataError: there are no labels, a split has no training or no test videos, or too many videos cannot be decoded.
        RunError: there is no checkpoint, it does not belong to the run, or a file cannot be written.
        StoppedError: a signal stopped a fine-tuning.
        TrainingError: the loss of a fine-tuning was non-finite.
        WeightsError: the `supervised` weights do not fit the network.
    """
    require_usable(run, experiment, protocols, supervised, best, part)
    require_output(run, out)
    require_labelled(experiment, splits, protocols)
    output = _output(run, out)
    output.require_writable("results")
    used = {name: with_labels_per_class(records, experiment) for name, records in splits.items()}
    model, checkpoint = run.checkpoints.load(best=best, weights=weights)
    loaded = digest(checkpoint)
    networks = {"metrics": model, "random_weights": _new_network(experiment, None)}
    if supervised:
        networks["supervised"] = _new_network(experiment, supervised)
    of_labels = Path(supervised) if supervised else None
    evaluation = Evaluation(output, experiment, used, progress, networks, checkpoint, loaded, of_labels)

    features = {}
    on_features = [name for name in protocols if name in PROBES]
    if on_features:
        found = extractions(evaluation, any(PROBES[name].needs_views for name in on_features))
        extract(evaluation, found, part)
        if part.of > 1:
            return {}
        features = {name: extraction.read() for name, extraction in found.items()}
    results = {}
    for protocol in protocols:
        if protocol in PROBES:
            outcomes = judge_features(evaluation, protocol, features)
        else:
            outcomes = judge_fine_tuned(evaluation, protocol)
        results[protocol] = write_outcomes(Subject.of_run(evaluation), protocol, outcomes)
    return results


def _output(run: RunDirectory, out: Path | None) -> RunDirectory:
    """The folder to write to. A folder other than the run gets a copy of its config, so that `compare` can read it."""
    if out is None or out.resolve() == run.path.resolve():
        return run
    output = RunDirectory(out)
    try:
        write_text(output.config_file, dump_experiment(run.experiment()))
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror or error}).") from error
    return output


def _new_network(experiment: Experiment, weights: str | None) -> HDC:
    """Build the run's network with random weights, or with weights from a file. `init_from` is ignored."""
    section = experiment.model.model_copy(update={"weights": weights, "init_from": None})
    return build_model(experiment.model_copy(update={"model": section}))
