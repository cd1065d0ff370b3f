"""Fine-tuning: from a backbone and a recipe to scores of test videos. Interrupted, it goes on where it stopped."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from hdc_keras.backbones import build_backbone
from hdc_keras.config import Experiment
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
from hdc_keras.data.records import VideoRecord, with_splits
from hdc_keras.data.sampling import WindowSpec
from hdc_keras.devices import refuse_wrong_gradients, uses_xla
from hdc_keras.errors import DataError, StoppedError, TrainingError
from hdc_keras.features.extraction import encoded_batches
from hdc_keras.features.store import digest_of_weights
from hdc_keras.finetuning.classifier import ClipScorer, VideoClassifier
from hdc_keras.finetuning.directory import FineTuningDirectory, Scores
from hdc_keras.finetuning.recipes import FineTuning
from hdc_keras.training.batches import Batches
from hdc_keras.training.callbacks import SaveCheckpoints, StopOnSignal
from hdc_keras.training.distribution import Distribution, synchronise_batch_norm
from hdc_keras.training.loop import fit_epochs
from hdc_keras.training.optimizers import WarmupCosine
from hdc_keras.training.run_logger import RunLogger

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FineTuningJob:
    """One training: which weights, which videos, which label, which seed.

    Attributes:
        title: what it is, for progress and the folder's name.
        recipe: as it is used.
        backbone: whose weights it starts from; random ones when `None`.
        experiment: its clips, precision and devices.
        train: videos to learn from.
        validation: videos to choose the epoch by; the last is taken when there are none.
        test: videos to judge.
        column: the label column.
        seed: of the classifier's weights, order, clips and augmentation.
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

    @property
    def classes(self) -> list[str]:
        """The classes that can be named, in alphabetical order."""
        return sorted({record.labels[self.column] for record in [*self.train, *self.validation]})

    def digest(self) -> str:
        """Of all that its result depends on."""
        sets = [[record.video_id for record in records] for records in (self.train, self.validation, self.test)]
        weights = digest_of_weights(self.backbone) if self.backbone else None
        evaluate, train = self.experiment.evaluate, self.experiment.train
        used = [evaluate.clips, evaluate.crops, train.precision, self.experiment.model.backbone, self.column, self.seed]
        parts = [asdict(self.recipe), self.experiment.data.model_dump(mode="json"), used, sets, weights]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def hold_out(
    records: Sequence[VideoRecord], share: float, column: str, seed: int
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Training videos to learn from, and some to choose the epoch by: whole groups, and of each class of `column`.

    Videos that the set itself calls "val" are taken where there are; none are where a class has too few groups.
    """
    train = [record for record in records if record.split == "train"]
    validation = [record for record in records if record.split == "val"]
    if not share or validation:
        return train, validation if share else []
    unsplit = [replace(record, labels={column: record.labels[column]}, split=None) for record in train]
    try:
        held_out = {record.video_id for record in with_splits(unsplit, share, seed) if record.split == "test"}
    except DataError:
        return train, []
    return (
        [record for record in train if record.video_id not in held_out],
        [record for record in train if record.video_id in held_out],
    )


def fine_tune(job: FineTuningJob, folder: Path, store: FrameStore, progress: Progress | None = None) -> Scores:
    """Train, or go on with a training that was interrupted, and score the test videos; what is finished is read.

    Args:
        job: what to do.
        folder: where trainings are kept, each under the digest of all that it depends on.
        store: decodes videos.
        progress: called with (what is being done, done, in all).

    Raises:
        ConfigError: the batch cannot be shared by the devices.
        DataError: too many videos cannot be decoded.
        StoppedError: a signal came; a checkpoint is saved.
        TrainingError: the loss was not finite.
    """
    run = FineTuningDirectory(folder / f"{job.title.replace(' ', '-').replace(',', '')}-{job.digest()[:12]}")
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
    failures = DecodeFailures(len(job.train) + len(job.validation), experiment.data.max_failed_share)
    with distribution.in_use():
        model = _train(job, experiment, run, store, failures, distribution, progress)
        scores = _score(model, job, experiment, store, dict(failures.reasons), progress)
    if job.backbone:  # random weights that were trained are of no use to anyone
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
    recipe, classes = job.recipe, job.classes
    labels = np.array([classes.index(record.labels[job.column]) for record in job.train])
    spec = WindowSpec(recipe.frames, recipe.stride, strides=(recipe.stride,), windows=1)
    loader = WindowLoader(job.train, spec, store, failures, recipe.batch_size, job.seed, labels)
    steps = loader.steps_per_epoch * recipe.clips_per_video
    resumes = bool(run.checkpoints.files())
    with distribution.scope():
        if resumes:
            run.checkpoints.remove_unfinished()
            model, _ = run.checkpoints.load(compiled=True)
            optimizer = model.optimizer
        else:
            model, optimizer = _new_classifier(job, experiment), _optimizer(recipe, steps)
        _compile(model, optimizer, experiment, distribution)
    if not resumes:
        run.create(experiment)
    batches, scorer = Batches(loader, experiment.data.workers, None, distribution), ClipScorer(model)
    stop = StopOnSignal(distribution)
    logger = RunLogger(
        run,
        model.steps_taken // steps,
        failures,
        recipe.batch_size,
        measure=lambda epoch: _validate(scorer, job, experiment, store, failures),
        waited=batches.waited,
    )
    callbacks = [stop, _RefuseNan(), logger, SaveCheckpoints(run, experiment.train), _Report(job, steps, progress)]
    try:
        with failures.named():
            fit_epochs(model, batches, model.steps_taken, steps, recipe.epochs, stop, callbacks)
    finally:
        stop.restore()
        logger.write_failures()
    if stop.stopped:
        raise StoppedError(
            f"Stopped in {job.title}; a checkpoint is saved. The same command goes on from it.", stop.signal or 15
        )
    return run.checkpoints.load(best=True)[0] if job.validation else model


def _new_classifier(job: FineTuningJob, experiment: Experiment) -> VideoClassifier:
    keras.utils.set_random_seed(job.seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(experiment.train.precision)
    try:
        backbone = build_backbone(experiment.model.backbone)
        model = VideoClassifier(
            backbone,
            job.classes,
            job.recipe.view_settings(experiment.data.decode_size),
            experiment.evaluate.crops,
            job.recipe.weight_decay,
            job.seed,
            name="classifier",
        )
    finally:
        keras.config.set_dtype_policy(before)
    if job.backbone:
        backbone.set_weights(job.backbone.get_weights())
    return model


def _optimizer(recipe: FineTuning, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """The recipe's. Its weight decay is in the model's loss."""
    rate: Any = recipe.learning_rate
    if recipe.schedule == "cosine":
        rate = WarmupCosine(recipe.learning_rate, 0, recipe.epochs * steps_per_epoch)
    elif recipe.schedule == "steps":
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [drop * steps_per_epoch for drop in recipe.drops],
            [recipe.learning_rate * recipe.drop_factor**number for number in range(len(recipe.drops) + 1)],
        )
    if recipe.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(rate, momentum=recipe.momentum)


def _compile(
    model: VideoClassifier, optimizer: keras.optimizers.Optimizer, experiment: Experiment, distribution: Distribution
) -> None:
    refuse_wrong_gradients(model.compute_dtype)
    if distribution.synchronises and keras.backend.backend() == "tensorflow":
        synchronise_batch_norm(model.backbone)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="top1")],
        # Keras cannot compile a step that devices share (docs/architecture.md).
        jit_compile=uses_xla(experiment.train.jit) and distribution.device_count == 1,
    )
    # Built here, because variables made inside the first step would have TensorFlow trace it twice.
    model.optimizer.build(model.trainable_variables)


def _validate(
    scorer: ClipScorer, job: FineTuningJob, experiment: Experiment, store: FrameStore, failures: DecodeFailures
) -> dict[str, float]:
    """Loss and top-1 of the middle clip of each validation video."""
    losses, right = [], []
    quick = experiment.model_copy(update={"evaluate": experiment.evaluate.model_copy(update={"clips": 1})})
    counted = DecodeFailures(len(job.validation), 1.0)  # those that are bad count for training, below
    for records, outputs in encoded_batches(
        scorer.predict_on_batch, scorer.crops, job.validation, quick, store, counted
    ):
        logits = outputs["logits"].mean(axis=1)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        truth = [job.classes.index(record.labels[job.column]) for record in records]
        losses += [-log_softmax[row, label] for row, label in enumerate(truth)]
        right += list(logits.argmax(axis=1) == truth)
    failures.reasons.update(counted.reasons)
    return {"val_loss": float(np.mean(losses)), "val_top1": float(np.mean(right))} if losses else {}


def _score(
    model: VideoClassifier,
    job: FineTuningJob,
    experiment: Experiment,
    store: FrameStore,
    training_failed: dict[str, str],
    progress: Progress | None,
) -> Scores:
    failures = DecodeFailures(len(job.test), experiment.data.max_failed_share)
    kept: list[VideoRecord] = []
    scores: list[np.ndarray] = []
    report = (lambda done, total: progress(f"{job.title}: test", done, total)) if progress else None
    scorer = ClipScorer(model)
    for records, outputs in encoded_batches(
        scorer.predict_on_batch, scorer.crops, job.test, experiment, store, failures, report
    ):
        values = outputs["logits"]
        if job.recipe.averaged == "softmax":
            values = np.exp(values - values.max(axis=-1, keepdims=True))
            values = values / values.sum(axis=-1, keepdims=True)
        kept += records
        scores.append(values.mean(axis=1))
    return Scores(kept, np.concatenate(scores), dict(failures.reasons), training_failed)


class _RefuseNan(keras.callbacks.Callback):
    """Ends training when an epoch's loss is not finite, before anything of it is saved."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not np.isfinite(float((logs or {}).get("loss", 0.0))):
            raise TrainingError(
                f"the loss of fine-tuning is not finite in epoch {epoch + 1}. Lower evaluate.finetune_learning_rate, "
                "or use precision float32."
            )


class _Report(keras.callbacks.Callback):
    """Tells how far training is."""

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
