"""The pretraining job: from an experiment and a run directory to checkpoints."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import frame_store, host_policy, steps_per_epoch, window_spec
from hdc_keras.data.loading import DecodeFailures, WindowLoader
from hdc_keras.data.records import VideoRecord
from hdc_keras.devices import make_deterministic
from hdc_keras.errors import RunError
from hdc_keras.model import HDC
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.batches import Batches
from hdc_keras.training.callbacks import SaveCheckpoints, StopOnSignal, WatchNumbers
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.knn_check import KnnCheck
from hdc_keras.training.loop import fit_epochs
from hdc_keras.training.models import compile_model, compiled_model
from hdc_keras.training.optimizers import exclude_from_decay
from hdc_keras.training.run_logger import RunLogger
from hdc_keras.training.views_picture import draw_views


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: steps taken so far, over all sessions of the run.
        epochs: epochs completed so far.
        finished: False when a signal stopped it.
        signal: number of the signal that stopped it; `None` when this process received none.
        failed_videos: reason by path.
        skipped: steps that were skipped because their loss or gradient was not finite.
    """

    step: int
    epochs: int
    finished: bool
    signal: int | None
    failed_videos: dict[str, str]
    skipped: int


def pretrain(
    experiment: Experiment,
    run: RunDirectory,
    records: Sequence[VideoRecord],
    *,
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    distribution: Distribution | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Outcome:
    """Train, from the beginning or from the run's newest checkpoint.

    Args:
        experiment: what to do; when resuming, the run's own.
        run: a created run directory.
        records: videos with splits; "train" is trained on, "test" serves the kNN check.
        resume: continue from the newest checkpoint.
        callbacks: further Keras callbacks, for progress.
        distribution: the devices to train on; chosen from `train.strategy` when `None`.
        warn: called with a message for every damaged checkpoint that is skipped.

    Raises:
        DataError: too few videos, or too many that cannot be decoded.
        RunError: there is nothing to resume, the run is finished, or its folder cannot be written.
        TrainingError: a step was not finite, and `train.on_nan` is "stop".
    """
    distribution = distribution or Distribution(experiment.train)
    if experiment.train.deterministic:
        make_deterministic()
    with distribution.in_use():
        return _pretrain(experiment, run, records, resume, callbacks, distribution, warn)


def _pretrain(
    experiment: Experiment,
    run: RunDirectory,
    records: Sequence[VideoRecord],
    resume: bool,
    callbacks: Sequence[keras.callbacks.Callback],
    distribution: Distribution,
    warn: Callable[[str], None],
) -> Outcome:
    train = experiment.train
    train_records = [record for record in records if record.split == "train"]
    steps = steps_per_epoch(experiment, records)
    with distribution.scope():
        model, step = _model_to_train(experiment, run, steps, resume, distribution, warn)

    store, policy = frame_store(experiment), host_policy(experiment)
    failures = DecodeFailures(len(train_records), experiment.data.max_failed_share)
    loader = WindowLoader(train_records, window_spec(experiment), store, failures, train.batch_size, experiment.seed)
    batches = Batches(loader, experiment.data.workers, policy, distribution)

    stop = StopOnSignal(distribution)
    used: list[keras.callbacks.Callback] = [stop, WatchNumbers(train.on_nan, run)]
    logger = None
    if distribution.is_chief:
        logger = RunLogger(
            run,
            step // steps,
            failures,
            clips_per_step=train.batch_size * len(model.view_generator.view_names),
            measure=KnnCheck(model, experiment, records, store),
            waited=batches.waited,
        )
        used.append(logger)
        if not resume:
            logger.write_views(draw_views(experiment, train_records, store, failures, policy))
    used.append(SaveCheckpoints(run, train, distribution.is_chief))
    try:
        with failures.named():
            step = fit_epochs(model, batches, step, steps, train.epochs, stop, [*used, *callbacks])
    finally:
        stop.restore()
        if logger:
            logger.write_failures()
    finished = step == train.epochs * steps
    skipped = model.step_record.count("skipped")
    return Outcome(step, step // steps, finished, stop.signal, dict(failures.reasons), skipped)


def _model_to_train(
    experiment: Experiment,
    run: RunDirectory,
    steps: int,
    resume: bool,
    distribution: Distribution,
    warn: Callable[[str], None],
) -> tuple[HDC, int]:
    """The compiled model, new or from the newest checkpoint, and the number of steps that it has taken."""
    if not resume:
        return compiled_model(experiment, steps, distribution), 0
    train = experiment.train
    if distribution.is_chief:
        run.checkpoints.remove_unfinished()
    model, file = run.checkpoints.load(compiled=True, warn=warn)
    exclude_from_decay(model.optimizer)
    if model.steps_taken >= train.epochs * steps:
        raise RunError(f"{run.path} is finished: {file.name} was taken after the last of its {train.epochs} epochs.")
    compile_model(model, model.optimizer, train, distribution)
    return model, model.steps_taken
