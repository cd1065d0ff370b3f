"""`--dry-run`: take two steps of a run, to know its cost before starting it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import length_of
from hdc_keras.data.records import VideoRecord
from hdc_keras.devices import peak_memory
from hdc_keras.training.batches import Batches, TrainingVideos
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.memory import MemoryNeed, memory_need
from hdc_keras.training.models import compiled_model


@dataclass(frozen=True)
class DryRun:
    """Measurements from the two steps.

    Attributes:
        xla: whether XLA compiles the step.
        batch_shape: shape of a batch of windows, over all devices.
        batch_dtype: dtype of the windows.
        views_shape: shape of all views of a batch.
        view_names: names of the views, in order.
        feature_shapes: shape of the pooled features of a batch, (views, batch, channels), by level.
        backbone_weights: number of trainable weights in the backbone.
        head_weights: number of trainable weights in the projection heads.
        clips: clips through the backbone per step.
        first_batch_s: seconds until the first batch was loaded.
        first_step_s: seconds of the first step, including tracing and compilation.
        step_s: seconds of the second step.
        loss: loss of the first step.
        steps: steps of the whole run.
        memory_gib: peak memory so far, in GiB.
        memory_of: where the memory was measured, worded as in "of the first GPU".
        need: the memory by formula, and whether it fits.
    """

    xla: bool
    batch_shape: tuple[int, ...]
    batch_dtype: str
    views_shape: tuple[int, ...]
    view_names: tuple[str, ...]
    feature_shapes: dict[str, tuple[int, ...]]
    backbone_weights: int
    head_weights: int
    clips: int
    first_batch_s: float
    first_step_s: float
    step_s: float
    loss: float
    steps: int
    memory_gib: float
    memory_of: str
    need: MemoryNeed


def dry_run(
    experiment: Experiment,
    records: Sequence[VideoRecord],
    distribution: Distribution,
    tell: Callable[[MemoryNeed], None] = lambda need: None,
) -> DryRun:
    """Build the experiment's model, load one batch, and take two steps on it. Writes nothing.

    Args:
        experiment: the run to try.
        records: videos with splits.
        distribution: the devices to train on.
        tell: called with the estimated memory before the first step, which may fail for lack of it.

    Raises:
        DataError: there are too few videos, or too many that cannot be decoded.
    """
    train = experiment.train
    length = length_of(experiment, records)
    with distribution.activate():
        with distribution.scope():
            model = compiled_model(experiment, length, distribution)
        need = memory_need(model, experiment, distribution)
        tell(need)
        videos = TrainingVideos.of(experiment, records)
        batches = Batches(videos.loader, experiment.data.workers, videos.policy, distribution).from_step(0)
        began = time.monotonic()
        with videos.failures.named():
            batch = batches[0] if isinstance(batches, keras.utils.PyDataset) else next(iter(batches))
        loaded = time.monotonic()
        timer = _StepTimer()
        # The same batch twice, so that the second step is timed without waiting for data.
        repeated = distribution.repeat_batch(batch, 2)
        model.fit(repeated, steps_per_epoch=2, verbose=0, shuffle=False, callbacks=[timer])
    views, size = len(model.view_generator.view_names), experiment.views.size
    clips = train.batch_size * views
    memory, memory_of = peak_memory()
    return DryRun(
        xla=bool(model.jit_compile or model.step_options.compile_features),
        batch_shape=(train.batch_size, *videos.loader.shape),
        batch_dtype="uint8",
        views_shape=(clips, experiment.data.frames, size, size, 3),
        view_names=model.view_generator.view_names,
        feature_shapes={level: (views, train.batch_size, width) for level, width in model.feature_widths.items()},
        backbone_weights=_weight_count(model.backbone.trainable_variables),
        head_weights=sum(_weight_count(head.trainable_variables) for head in model.objective.heads.values()),
        clips=clips,
        first_batch_s=loaded - began,
        first_step_s=timer.seconds[0],
        step_s=timer.seconds[1],
        loss=timer.losses[0],
        steps=length.steps,
        memory_gib=memory,
        memory_of=memory_of,
        need=need,
    )


class _StepTimer(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(float((logs or {})["loss"]))  # waits until the device has finished the step
        self.seconds.append(time.monotonic() - self._began)


def _weight_count(variables: Sequence[Any]) -> int:
    return int(sum(np.prod(variable.shape) for variable in variables))
