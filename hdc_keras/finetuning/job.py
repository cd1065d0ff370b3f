"""The fine-tuning job: from a backbone and a recipe to scores of the test videos. It resumes after an interruption."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from hdc_keras.backbones import build_backbone
from hdc_keras.config import Experiment, Length
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.sampling import WindowSpec
from hdc_keras.devices import dtype_policy, refuse_wrong_gradients, uses_xla, warn_of_slow_convolutions
from hdc_keras.errors import ConfigError, StoppedError, TrainingError
from hdc_keras.features.store import digest_of_weights, identity
from hdc_keras.finetuning.classifier import BalancedCrossEntropy, VideoClassifier
from hdc_keras.finetuning.directory import FineTuningDirectory, Scores
from hdc_keras.finetuning.optimizer import recipe_optimizer
from hdc_keras.finetuning.recipes import FineTuning
from hdc_keras.finetuning.scoring import ClipScorer, score_videos, validation_metrics
from hdc_keras.training.batches import Batches
from hdc_keras.training.callbacks import SaveCheckpoints, StopOnSignal
from hdc_keras.training.distribution import Distribution, synchronise_batch_norm
from hdc_keras.training.loop import fit_epochs
from hdc_keras.training.run_logger import RunLogger

# (description of the current task, items done, total items).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear classifier of features.

    Attributes:
        kernel: (channels, classes) float32.
        bias: (classes,) float32.
    """

    kernel: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class ClassifierOptions:
    """What a classifier reads, starts from and how its training ends. The published recipes have the defaults.

    Attributes:
        levels: the stages that it reads; the last one when `None`.
        head: its initial weights; random when `None`.
        is_balanced: whether each class counts the same in the loss, however many videos it has.
        patience: epochs without a lower validation loss after which training ends; `None` for never.
    """

    levels: tuple[str, ...] | None = None
    head: LinearHead | None = None
    is_balanced: bool = False
    patience: int | None = None

    def identity(self) -> list[Any]:
        """All options as JSON values."""
        head = (
            [hashlib.sha256(a.tobytes()).hexdigest() for a in (self.head.kernel, self.head.bias)] if self.head else []
        )
        return [self.levels, head, self.is_balanced, self.patience]


@dataclass(frozen=True)
class FineTuningJob:
    """One fine-tuning: weights, recipe, videos, label column and seed.

    Attributes:
        title: short description, for progress and the name of the folder.
        recipe: the recipe as it is used (see `FineTuning.applied` and `FineTuning.fitted`).
        backbone: provides the initial weights; random weights when `None`.
        experiment: defines clips, precision and devices.
        train: videos to train on.
        validation: videos on which the best epoch is chosen; if there are none, the last epoch is used.
        test: videos to score.
        column: the label column to predict.
        seed: seed of initial classifier weights, order, clips and augmentation.
        options: what the classifier reads, starts from and how it ends, other than in the published recipes.
        saves_classifier: whether the trained classifier is kept.
    """

    title: str
    recipe: FineTuning
    backbone: keras.Model | None
    experiment: Experiment
    train: Sequence[VideoRecord]
    validation: Sequence[VideoRecord]
    test: Sequence[VideoRecord]
    column: str
    seed: int
    options: ClassifierOptions = ClassifierOptions()
    saves_classifier: bool = True

    @property
    def classes(self) -> list[str]:
        """The classes of the training and validation videos, in alphabetical order."""
        return sorted({record.labels[self.column] for record in [*self.train, *self.validation]})

    def digest(self) -> str:
        """SHA-256 of everything that the scores depend on."""
        videos = [
            [[*identity(record), record.labels[self.column], record.group] for record in records]
            for records in (self.train, self.validation, self.test)
        ]
        weights = digest_of_weights(self.backbone) if self.backbone else None
        data, evaluate = self.experiment.data, self.experiment.evaluate
        clips = [evaluate.clips, evaluate.crops, data.frames, data.stride, data.decode_size, data.decoder]
        used: list[Any] = [
            clips,
            self.experiment.train.precision,
            self.experiment.model.backbone,
            self.column,
            self.seed,
        ]
        if data.fps:
            used.append(data.fps)
        if self.options != ClassifierOptions():
            used.append(self.options.identity())
        return hashlib.sha256(json.dumps([asdict(self.recipe), used, videos, weights]).encode()).hexdigest()

    def labels_of(self, records: Sequence[VideoRecord]) -> list[int]:
        """Index of each video's class in `classes`."""
        classes = self.classes
        return [classes.index(record.labels[self.column]) for record in records]


def directory_of(job: FineTuningJob, folder: Path) -> FineTuningDirectory:
    """Where `fine_tune` keeps what it does, given the parent folder of all fine-tunings."""
    return FineTuningDirectory(folder / f"{job.title.replace(' ', '-').replace(',', '')}-{job.digest()[:12]}")


def fine_tune(job: FineTuningJob, folder: Path, store: FrameStore, progress: Progress | None = None) -> Scores:
    """Train a classifier and score the test videos.

    An interrupted training is resumed. The scores of a finished one are read from its folder.

    Args:
        job: the fine-tuning to run.
        folder: parent folder of all fine-tunings; each has a subfolder named by title and digest.
        store: decodes the videos.
        progress: called with (description of the current task, items done, total items).

    Raises:
        ConfigError: the batch cannot be divided among the devices.
        DataError: too many videos cannot be decoded.
        RunError: a file cannot be written, or a checkpoint does not belong to the job.
        StoppedError: a signal stopped training; a checkpoint has been saved.
        TrainingError: the loss was non-finite.
    """
    run = directory_of(job, folder)
    finished = run.read_scores(job.test)
    if finished:
        return finished
    train = job.experiment.train.model_copy(
        update={
            "epochs": job.recipe.epochs,
            "batch_size": job.recipe.batch_size,
            "micro_batches": 1,
            "checkpoint_every": 1,
            "keep_checkpoints": 1,
        }
    )
    experiment = job.experiment.model_copy(update={"train": train, "seed": job.seed})
    distribution = Distribution(train)
    if distribution.is_multi_process:
        raise ConfigError(
            "fine-tuning runs in one process. ClassifierOptions it only once, or set `train.strategy: one_device`."
        )
    max_failed_share = experiment.data.max_failed_share
    training_failures = DecodeFailures(len(job.train) + len(job.validation), max_failed_share)
    test_failures = DecodeFailures(len(job.test), max_failed_share)
    report = (lambda done, total: progress(f"{job.title}: test", done, total)) if progress else None
    with run.sole_training(), distribution.activate():
        model = _train(job, experiment, run, store, training_failures, distribution, progress)
        records, values = score_videos(
            ClipScorer(model), job.test, experiment, store, test_failures, job.recipe.averaged, report
        )
        scores = Scores(records, values, dict(test_failures.reasons), dict(training_failures.reasons))
        if job.saves_classifier:
            run.save_classifier(model)
        run.write_scores(scores)
        shutil.rmtree(run.checkpoints.folder)
    return scores


def _train(
    job: FineTuningJob,
    experiment: Experiment,
    run: FineTuningDirectory,
    store: FrameStore,
    failures: DecodeFailures,
    distribution: Distribution,
    progress: Progress | None,
) -> VideoClassifier:
    """Train, from the beginning or from the newest checkpoint, and return the chosen epoch's model."""
    recipe = job.recipe
    spec = WindowSpec(recipe.frames, recipe.stride, strides=(recipe.stride,), windows=1)
    labels = np.array(job.labels_of(job.train))
    loader = WindowLoader(job.train, spec, store, failures, recipe.batch_size, job.seed, labels)
    steps = loader.steps_per_epoch * recipe.clips_per_video
    resume = bool(run.checkpoints.files())
    with distribution.scope():
        if resume:
            run.remove_unfinished()
            model, _ = run.checkpoints.load(compiled=True)
            optimizer = model.optimizer
        else:
            model, optimizer = new_classifier(job, experiment), recipe_optimizer(recipe, steps)
        _compile(model, optimizer, _loss_of(job), experiment, distribution)
    if not resume:
        run.create(experiment)

    batches, scorer = Batches(loader, experiment.data.workers, None, distribution), ClipScorer(model)
    validation_labels = job.labels_of(job.validation)
    stop = StopOnSignal(distribution)
    logger = RunLogger(
        run,
        model.steps_taken // steps,
        failures,
        recipe.batch_size,
        measure=lambda epoch: validation_metrics(
            scorer, job.validation, validation_labels, experiment, store, failures
        ),
        waited=batches.waited,
    )
    callbacks = [
        _StopOnNonFiniteLoss(),
        logger,
        SaveCheckpoints(run, recipe.epochs, experiment.train),
        _ReportProgress(job, steps, progress),
    ]
    early = _StopEarly(run, job.options.patience)
    try:
        if not early.is_due():
            with failures.named():
                length = Length(steps, recipe.epochs * steps)
                fit_epochs(model, batches, length, stop, [*callbacks, early])
    finally:
        stop.restore()
        logger.write_failures()
    if stop.stopped:
        raise StoppedError(
            f"Stopped during {job.title}; a checkpoint has been saved. Repeat the command to resume from it.",
            stop.signal or 15,
        )
    return run.checkpoints.load(best=True)[0] if job.validation else model


def new_classifier(job: FineTuningJob, experiment: Experiment) -> VideoClassifier:
    """The classifier that a fine-tuning starts from, without training."""
    keras.utils.set_random_seed(job.seed)
    with dtype_policy(experiment.train.precision):
        backbone = build_backbone(experiment.model.backbone)
        model = VideoClassifier(
            backbone,
            job.classes,
            job.recipe.view_settings(experiment.data.decode_size),
            experiment.evaluate.crops,
            job.recipe.weight_decay,
            job.seed,
            job.options.levels,
            name="classifier",
        )
    if job.backbone:
        backbone.set_weights(job.backbone.get_weights())
    if job.options.head:
        model.classifier.set_weights([job.options.head.kernel, job.options.head.bias])
    return model


def _loss_of(job: FineTuningJob) -> keras.losses.Loss:
    if not job.options.is_balanced:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    videos = np.bincount(job.labels_of(job.train), minlength=len(job.classes))
    return BalancedCrossEntropy((len(job.train) / len(job.classes) / np.maximum(videos, 1)).tolist())


def _compile(
    model: VideoClassifier,
    optimizer: keras.optimizers.Optimizer,
    loss: keras.losses.Loss,
    experiment: Experiment,
    distribution: Distribution,
) -> None:
    refuse_wrong_gradients(model.backbone)
    warn_of_slow_convolutions()
    if distribution.synchronises_batch_norm and keras.backend.backend() == "tensorflow":
        synchronise_batch_norm(model.backbone)
    model.compile(
        optimizer,
        loss,
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="top1")],
        # XLA cannot contain the collectives of a step that several devices share.
        jit_compile=uses_xla(experiment.train.jit) and distribution.device_count == 1,
    )
    # If the first step had to create the optimizer's variables, TensorFlow would trace it twice.
    model.optimizer.build(model.trainable_variables)


class _StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Raises an error after an epoch with a non-finite loss, before a checkpoint is saved."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not np.isfinite(float((logs or {}).get("loss", 0.0))):
            raise TrainingError(
                f"the fine-tuning loss is non-finite (NaN or infinity) in epoch {epoch + 1}. Lower "
                "evaluate.finetune_learning_rate, or use train.precision float32."
            )


class _StopEarly(keras.callbacks.Callback):
    """Ends training when the validation loss has not fallen for `patience` epochs. It must come after `RunLogger`."""

    def __init__(self, run: FineTuningDirectory, patience: int | None):
        super().__init__()
        self.run = run
        self.patience = patience

    def is_due(self) -> bool:
        """Whether training is over, also that of an earlier process."""
        losses = [float(row["val_loss"]) for row in self.run.read_metrics() if row.get("val_loss")]
        return bool(self.patience and losses) and len(losses) - 1 - int(np.argmin(losses)) >= (self.patience or 0)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.is_due():
            self.model.stop_training = True


class _ReportProgress(keras.callbacks.Callback):
    """Calls `progress` after each step with the steps done and the total."""

    def __init__(self, job: FineTuningJob, steps_per_epoch: int, progress: Progress | None):
        super().__init__()
        self.job = job
        self.total = steps_per_epoch * job.recipe.epochs
        self.progress = progress
        self._step = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self._step = self.model.steps_taken

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        if self.progress:
            self.progress(self.job.title, self._step, self.total)
