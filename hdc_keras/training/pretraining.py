"""The pretraining job: from an experiment and a run directory to checkpoints. Prepare, step, log, save."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import keras

from hdc_keras.config import Experiment, Length
from hdc_keras.data.from_experiment import length_of
from hdc_keras.data.records import VideoRecord
from hdc_keras.devices import make_deterministic
from hdc_keras.errors import RunError
from hdc_keras.model import HDC
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.videos import require_same_course
from hdc_keras.training.batches import Batches, TrainingVideos
from hdc_keras.training.callbacks import (
    CountSkippedSteps,
    SaveCheckpoints,
    StopOnNonFinite,
    StopOnSignal,
    WarnOfCollapse,
)
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.knn_check import KnnCheck
from hdc_keras.training.loop import fit_epochs
from hdc_keras.training.memory import memory_need
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
        failed_videos: reason by path, for each video that could not be decoded.
        skipped: steps that were skipped because of a non-finite loss or gradient.
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
        experiment: the experiment to run; when resuming, the one that the run was created with.
        run: a created run directory.
        records: videos with splits; those of "train" are trained on, and serve the kNN check.
        resume: continue from the newest checkpoint, or start the run that ended before its first one.
        callbacks: further Keras callbacks, for progress.
        distribution: the devices to train on; chosen from `train.strategy` when `None`.
        warn: called with a message for every damaged checkpoint that is skipped, if there is none to continue from, for
            a collapse, if there is no kNN check, and if a step will probably not fit into memory.

    Raises:
        ConfigError: when resuming, a key was edited that changes the course of training.
        DataError: too few videos, or too many that cannot be decoded.
        RunError: the training videos have changed, the run is finished, another process trains in it or has taken it
            over, its checkpoints are all damaged, or its folder cannot be written.
        TrainingError: a step had a non-finite loss or gradient, and `train.on_nan` is "stop".
    """
    if resume:
        require_same_course(run.path, experiment, records)
    train = experiment.train
    distribution = distribution or Distribution(train)
    if train.deterministic:
        make_deterministic()
    # The chief alone locks the run, for all processes that train it together.
    with run.sole_training(warn) if distribution.is_chief else nullcontext(), distribution.activate():
        # Prepare: the model, its batches, and the files that it reports to.
        length = length_of(experiment, records)
        with distribution.scope():
            if resume and not run.checkpoints.files():
                warn(f"{run.path} ended before its first checkpoint. It starts from the beginning.")
                resume = False
            if resume:
                model = _model_from_checkpoint(experiment, run, length, distribution, warn)
            else:
                model = compiled_model(experiment, length, distribution)
        need = memory_need(model, experiment, distribution)
        if need.fits is False:
            warn(f"Memory: a step needs {need}.")
        videos = TrainingVideos.of(experiment, records)
        batches = Batches(videos.loader, experiment.data.workers, videos.policy, distribution)
        logger = RunLogger(
            run,
            first_epoch=length.epochs_after(model.steps_taken),
            failures=videos.failures,
            clips_per_step=train.batch_size * len(model.view_generator.view_names),
            measure=KnnCheck(model, experiment, length.epochs, records, videos.store, warn),
            waited=batches.waited,
            writes=distribution.is_chief,
        )
        if not resume:
            logger.write_views(draw_views(experiment, videos))

        # Step, log, save. Callbacks run in this order after each step and each epoch.
        stop = StopOnSignal(distribution)
        non_finite = StopOnNonFinite(run) if train.on_nan == "stop" else CountSkippedSteps()
        save = SaveCheckpoints(run, length.epochs, train, distribution)
        try:
            with videos.failures.named():
                fit_epochs(
                    model,
                    batches,
                    length,
                    stop,
                    [non_finite, WarnOfCollapse(warn), logger, save, *callbacks],
                )
        finally:
            stop.restore()
            logger.write_failures()

        step = model.steps_taken
        return Outcome(
            step=step,
            epochs=length.epochs_after(step),
            finished=step == length.steps,
            signal=stop.signal,
            failed_videos=dict(videos.failures.reasons),
            skipped=model.step_record.count("skipped"),
        )


def _model_from_checkpoint(
    experiment: Experiment,
    run: RunDirectory,
    length: Length,
    distribution: Distribution,
    warn: Callable[[str], None],
) -> HDC:
    """The compiled model of the run's newest checkpoint, with its optimizer's state."""
    train = experiment.train
    if distribution.is_chief:
        run.checkpoints.remove_unfinished()
    model, file = run.checkpoints.load(compiled=True, warn=warn)
    if model.steps_taken >= length.steps:
        raise RunError(f"{run.path} is finished: {file.name} was saved after the last of its {length.steps} steps.")
    exclude_from_decay(model.optimizer)
    compile_model(model, model.optimizer, train, distribution)
    return model
