"""One step of a run, to see that it works and what it costs, before days of it."""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import frame_store, host_policy, steps_per_epoch, window_spec
from hdc_keras.data.loading import DecodeFailures, WindowLoader
from hdc_keras.data.records import VideoRecord
from hdc_keras.training.batches import Batches
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.models import compiled_model


@dataclass(frozen=True)
class Rehearsal:
    """What was seen.

    Attributes:
        xla: whether XLA compiles the step.
        batch_shape: of the windows, over all devices.
        batch_dtype: of the windows.
        views_shape: of all views of a batch.
        view_names: in their order.
        feature_shapes: pooled features of a batch by level: (views, batch, channels).
        backbone_weights: trainable weights of the backbone.
        head_weights: trainable weights of the heads.
        clips: clips through the backbone in a step.
        first_batch_s: seconds until the first batch was there.
        first_step_s: seconds of the first step.
        step_s: seconds of the second.
        loss: of the first step.
        steps: steps of the whole run.
        memory_gib: greatest memory so far.
        memory_of: of what.
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


def rehearse(experiment: Experiment, records: Sequence[VideoRecord], distribution: Distribution) -> Rehearsal:
    """Build the experiment's model, load one batch, and take two steps on it; nothing is written.

    Args:
        experiment: what would be run.
        records: videos with splits.
        distribution: the devices.

    Raises:
        DataError: too few videos, or the first cannot be decoded.
    """
    train = experiment.train
    records = [record for record in records if record.split == "train"]
    steps = steps_per_epoch(experiment, records)
    with distribution.in_use():
        with distribution.scope():
            model = compiled_model(experiment, steps, distribution)
        failures = DecodeFailures(len(records), experiment.data.max_failed_share)
        store = frame_store(experiment)
        loader = WindowLoader(records, window_spec(experiment), store, failures, train.batch_size, experiment.seed)
        batches = Batches(loader, experiment.data.workers, host_policy(experiment), distribution).from_step(0)
        began = time.monotonic()
        batch = batches[0] if isinstance(batches, keras.utils.PyDataset) else next(iter(batches))
        loaded = time.monotonic()
        first = _Clock()
        # One batch, twice: how fast data comes is measured by the run itself.
        model.fit(distribution.repeated(batch, 2), steps_per_epoch=2, verbose=0, shuffle=False, callbacks=[first])
    views, size = len(model.view_generator.view_names), experiment.views.size
    clips = train.batch_size * views
    memory, memory_of = greatest_memory()
    return Rehearsal(
        xla=bool(model.jit_compile or model.step_options.compile_features),
        batch_shape=(train.batch_size, *loader.shape),
        batch_dtype="uint8",
        views_shape=(clips, experiment.data.frames, size, size, 3),
        view_names=model.view_generator.view_names,
        feature_shapes={level: (views, train.batch_size, width) for level, width in model.feature_widths.items()},
        backbone_weights=_size(model.backbone.trainable_variables),
        head_weights=sum(_size(head.trainable_variables) for head in model.objective.heads.values()),
        clips=clips,
        first_batch_s=loaded - began,
        first_step_s=first.seconds[0],
        step_s=first.seconds[1],
        loss=first.losses[0],
        steps=steps * train.epochs,
        memory_gib=memory,
        memory_of=memory_of,
    )


class _Clock(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(float((logs or {})["loss"]))  # waits for the device
        self.seconds.append(time.monotonic() - self._began)


def _size(variables: Sequence[Any]) -> int:
    return int(sum(np.prod(variable.shape) for variable in variables))


def greatest_memory() -> tuple[float, str]:
    """Greatest memory so far in GiB, and whose."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30, "of the first GPU"
    elif backend == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats()
        if stats:
            return stats["peak_bytes_in_use"] / 2**30, "of the first device"
    else:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30, "of the GPU"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "of this process"
