"""The pretraining job: from an experiment and a run directory to checkpoints."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from hdc_keras.backbones import build_backbone
from hdc_keras.backbones.torchvision_weights import load_torchvision_weights
from hdc_keras.config import Experiment, TrainConfig
from hdc_keras.data.datasets import VideoSet, read_local_dataset
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowBatches, WindowLoader, count_steps
from hdc_keras.data.records import SPLITS, VideoRecord, at_most_per_class, read_records, with_splits
from hdc_keras.data.sampling import WindowSpec, random_generator, sample_windows, video_keys
from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes
from hdc_keras.devices import make_deterministic, uses_xla
from hdc_keras.encoder import ClipEncoder
from hdc_keras.errors import ConfigError, RunError, VideoDecodeError
from hdc_keras.evaluation.features import extract_features
from hdc_keras.evaluation.protocols import judge
from hdc_keras.model import HDC
from hdc_keras.training.callbacks import RunLogger, SaveCheckpoints, StopOnSignal, WatchNumbers
from hdc_keras.training.distribution import Distribution, synchronise_batch_norm
from hdc_keras.training.optimizers import build_optimizer, exclude_from_decay
from hdc_keras.training.run_directory import RunDirectory
from hdc_keras.views.gallery import GALLERY_VIDEOS, draw_gallery
from hdc_keras.views.generator import ViewGenerator

Progress = Callable[[int, int], None]

# The kNN check looks at this many videos of each split at most, with few clips: it is a signal, not a result.
_KNN_VIDEOS = 256
_KNN_CLIPS = 2


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: steps taken in all.
        epochs: epochs completed in all.
        finished: False when a signal stopped it.
        signal: number of the signal that stopped it; `None` when none came to this process.
        failed_videos: reason by path.
        skipped: steps whose gradient was left out because it or the loss was not finite.
    """

    step: int
    epochs: int
    finished: bool
    signal: int | None
    failed_videos: dict[str, str]
    skipped: int


def load_videos(experiment: Experiment, progress: Progress | None = None) -> VideoSet:
    """The experiment's videos, each with a split; moving shapes are rendered if need be.

    With `data.limit_per_class` and `data.limit`, at most that many of each class and of each split are kept, drawn at
    random.
    """
    data = experiment.data
    notes: list[str] = []
    if data.path is None:
        train, test = data.shapes_per_pair
        records = read_records(ensure_moving_shapes(MovingShapes(train, test), progress))
    else:
        records, notes = read_local_dataset(data)
    # What is drawn depends on the order, and a set has another one once it is prepared.
    records = sorted(records, key=lambda record: record.video_id)
    records = with_splits(records, data.holdout, experiment.seed)
    if data.limit_per_class:
        records = at_most_per_class(records, data.limit_per_class, experiment.seed)
    if data.limit:
        order = random_generator("limit", experiment.seed).permutation(len(records))
        kept = [i for split in SPLITS for i in [i for i in order if records[i].split == split][: data.limit]]
        records = [records[i] for i in sorted(kept)]
    return VideoSet(records, notes)


def build_model(experiment: Experiment) -> HDC:
    """The experiment's model, with weights that follow from its seed or start from `model.weights`."""
    keras.utils.set_random_seed(experiment.seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(experiment.train.precision)
    try:
        backbone = build_backbone(experiment.model.backbone)
        if experiment.model.weights:
            load_torchvision_weights(backbone, experiment.model.weights)
        model = HDC(backbone, experiment.views, experiment.contrast, seed=experiment.seed, name="hdc")
    finally:
        keras.config.set_dtype_policy(before)
    if experiment.model.init_from:
        copy_weights(model, experiment.model.init_from)
    return model


def steps_per_epoch(experiment: Experiment, records: Sequence[VideoRecord]) -> int:
    """Batches in a pass over the training videos. Raises `DataError` when there is not even one."""
    return count_steps(sum(record.split == "train" for record in records), experiment.train.batch_size)


def frame_store(experiment: Experiment) -> FrameStore:
    """Decodes to the experiment's size, within its memory budget."""
    return FrameStore(experiment.data.decode_size, experiment.data.cache_gb, experiment.data.decoder)


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
        records: videos with splits; those of "train" are trained on, "test" serves the kNN check.
        resume: continue from the newest checkpoint.
        callbacks: further Keras callbacks, for progress.
        distribution: the devices to train on; made from `train.strategy` when `None`.
        warn: told of damaged checkpoints that are passed over.

    Raises:
        DataError: too few videos, or too many that cannot be decoded.
        RunError: nothing to resume, the run is finished, or its folder cannot be written.
        TrainingError: a step's numbers were not finite, and `train.on_nan` is "stop".
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
    own: list[keras.callbacks.Callback] = [stop, WatchNumbers(train.on_nan, run)]
    if distribution.is_chief:
        encoder = ClipEncoder(model, experiment.data.decode_size)
        logger = RunLogger(
            run,
            step // steps,
            failures,
            train.batch_size * len(model.view_generator.view_names),
            measure=lambda epoch: _knn_check(encoder, experiment, records, store, epoch),
            waited=batches.waited,
        )
        own.append(logger)
        if not resume:
            logger.write_views(_draw_views(experiment, train_records, store, failures, policy, run))
    own.append(SaveCheckpoints(run, train, distribution.is_chief))
    try:
        with failures.named():
            step = fit_epochs(model, batches, step, steps, train.epochs, stop, [*own, *callbacks])
    finally:
        stop.restore()
        if distribution.is_chief:
            logger.write_failures()
    finished = step == train.epochs * steps
    skipped = model.step_record.count("skipped")
    return Outcome(step, step // steps, finished, stop.signal, dict(failures.reasons), skipped)


def fit_epochs(
    model: Any,
    batches: "Batches",
    step: int,
    steps_per_epoch: int,
    epochs: int,
    stop: StopOnSignal,
    callbacks: Sequence[keras.callbacks.Callback],
) -> int:
    """Train from `step` on to the end of the last epoch, or until `stop` says so. Gives the steps taken in all."""
    while step < epochs * steps_per_epoch and not stop.stopped:
        # A run that was stopped inside an epoch first ends that epoch; then all the others follow.
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        model.fit(
            batches.from_step(step),
            initial_epoch=epoch,
            epochs=epoch + 1 if step_in_epoch else epochs,
            steps_per_epoch=steps_per_epoch - step_in_epoch,
            verbose=0,
            shuffle=False,  # the data set is in its order already
            callbacks=list(callbacks),
        )
        step = model.steps_taken
    return step


def _model_to_train(
    experiment: Experiment,
    run: RunDirectory,
    steps: int,
    resume: bool,
    distribution: Distribution,
    warn: Callable[[str], None],
) -> tuple[HDC, int]:
    """The compiled model, new or as it was saved, and the steps it has taken."""
    train = experiment.train
    if resume:
        if distribution.is_chief:
            run.remove_unfinished()
        model, file = run.load_checkpoint(compiled=True, warn=warn)
        exclude_from_decay(model.optimizer)
        if model.steps_taken >= train.epochs * steps:
            raise RunError(
                f"{run.path} is finished: {file.name} was taken after the last of its {train.epochs} epochs."
            )
        compile_model(model, model.optimizer, train, distribution)
    else:
        model = compiled_model(experiment, steps, distribution)
    return model, model.steps_taken


def compiled_model(experiment: Experiment, steps_per_epoch: int, distribution: Distribution) -> HDC:
    """A new model, ready to train; to be called in the distribution's scope."""
    model = build_model(experiment)
    compile_model(model, build_optimizer(experiment.train, steps_per_epoch), experiment.train, distribution)
    return model


def compile_model(
    model: HDC, optimizer: keras.optimizers.Optimizer, train: TrainConfig, distribution: Distribution
) -> None:
    """Compile as `train` and the devices ask."""
    if distribution.synchronises and keras.backend.backend() == "tensorflow":
        synchronise_batch_norm(model.backbone)
    jit = uses_xla(train.jit) and not (distribution.synchronises and keras.backend.backend() == "tensorflow")
    model.compile(
        optimizer,
        jit_compile=jit,
        micro_batches=train.micro_batches,
        accumulate=train.accumulate,
        rematerialise=train.rematerialise,
        clip_norm=train.clip_norm,
    )


def window_spec(experiment: Experiment) -> WindowSpec:
    """How the experiment draws windows."""
    data, views = experiment.data, experiment.views
    return WindowSpec(data.frames, data.stride, views.min_gap, views.second_strides or (data.stride,), views.reverse)


def host_policy(experiment: Experiment) -> Any:
    """The experiment's `HostPolicy`, or `None`. Raises `ConfigError` where it cannot be built."""
    layers = experiment.views.host_policy
    if not layers:
        return None
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "`views.host_policy` is applied in tf.data, so it needs KERAS_BACKEND=tensorflow. Received: "
            f"{keras.backend.backend()}"
        )
    from hdc_keras.data.host_policy import HostPolicy

    return HostPolicy(layers)


class Batches:
    """What `fit` is fed with: tf.data on TensorFlow, and elsewhere what works without TensorFlow.

    Attributes:
        waited: seconds that training has waited for batches so far; `None` where that is not measured: over several
            devices, which fetch ahead by themselves, and without tf.data.

    Args:
        loader: loads the windows.
        workers: videos decoded at once.
        policy: host policy, or `None`.
        distribution: the devices that share a batch.
    """

    def __init__(self, loader: WindowLoader, workers: int | None, policy: Any, distribution: Distribution):
        self.loader = loader
        self.workers = workers
        self.policy = policy
        self.distribution = distribution
        self.waited: Callable[[], float] | None = None
        self._clock: Any = None
        if keras.backend.backend() == "tensorflow" and distribution.replicas == 1:
            from hdc_keras.data.pipeline import WaitClock

            self._clock = WaitClock()
            self.waited = lambda: self._clock.seconds

    def from_step(self, step: int) -> Any:
        """Endless batches from `step` on."""
        if keras.backend.backend() != "tensorflow":
            return WindowBatches(self.loader, step, self.workers)
        import tensorflow as tf

        from hdc_keras.data.pipeline import Share, windows_dataset

        # With oneDNN, this pass of TensorFlow's graph optimizer fails on the training step and logs an error each time.
        # The step runs all the same; without the pass it runs without the alarm.
        tf.config.optimizer.set_experimental_options({"remapping": False})

        def make(first: int, count: int) -> Any:
            share = Share(first, count, self.distribution.replicas)
            return windows_dataset(self.loader, step, self.workers, self.policy, share, self._clock)

        return self.distribution.distribute(make)


def copy_weights(model: HDC, source: str) -> None:
    """Start `model` from the weights of a run or a .keras file (of an `HDC` or a backbone); all else stays new.

    The backbone must be the same; of the heads, those are taken that are there and fit.

    Raises:
        RunError: there are no such weights, or they are of another backbone.
    """
    path = Path(source)
    if path.is_dir():
        found, path = RunDirectory(path).load_checkpoint()
    else:
        try:
            found = keras.models.load_model(path, compile=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"model.init_from: {path} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    backbone = found.backbone if isinstance(found, HDC) else found
    shapes = [[tuple(v.shape) for v in network.variables] for network in (backbone, model.backbone)]
    if shapes[0] != shapes[1]:
        raise RunError(
            f"model.init_from: {path} holds the backbone {backbone.name}, which does not fit {model.backbone.name}. "
            "Set model.backbone to it, or start from other weights."
        )
    model.backbone.set_weights(backbone.get_weights())
    for name, head in model.heads.items():
        other = found.heads.get(name) if isinstance(found, HDC) else None
        if other and [v.shape for v in other.variables] == [v.shape for v in head.variables]:
            head.set_weights(other.get_weights())


def _draw_views(
    experiment: Experiment,
    records: Sequence[VideoRecord],
    store: FrameStore,
    failures: DecodeFailures,
    policy: Any,
    run: RunDirectory,
) -> bytes:
    """Write `views.png`, and give it: the views of the first videos that decode."""
    windows: list[np.ndarray] = []
    for record in records:
        try:
            key, count = video_keys([record.video_id]), np.array([store.count(record)])
            indices = sample_windows(experiment.seed, 0, key, count, window_spec(experiment))
            clips = store.clips(record, indices[0])
            windows.append(policy(clips).numpy() if policy else clips)
        except VideoDecodeError as error:
            failures.add(error)
        if len(windows) == GALLERY_VIDEOS:
            break
    # Draws of its own, so that the picture does not move those of the training.
    generator = ViewGenerator(experiment.views, experiment.contrast.task, experiment.seed)
    png = draw_gallery(generator, np.stack(windows))
    run.write_bytes("views.png", png)
    return png


def _knn_check(
    encoder: ClipEncoder, experiment: Experiment, records: Sequence[VideoRecord], store: FrameStore, epoch: int
) -> Mapping[str, float]:
    """Top-1 of kNN on held-out videos by label column, at the epochs that `train.knn_every` names and the last."""
    every, last = experiment.train.knn_every, experiment.train.epochs
    if not every or (epoch % every and epoch != last):
        return {}
    chosen = [
        [record for record in records if record.split == split and record.labels][:: 1 + len(records) // _KNN_VIDEOS]
        for split in ("train", "test")
    ]
    if not all(chosen):
        return {}
    quick = experiment.model_copy(update={"evaluate": experiment.evaluate.model_copy(update={"clips": _KNN_CLIPS})})
    features = extract_features(encoder, chosen[0] + chosen[1], quick, store)
    answers = judge("knn", features, {"features": list(experiment.contrast.used_levels)}, experiment.evaluate)
    return {f"knn_{answer.column}": answer.judgement.metrics["top1"] for answer in answers}
