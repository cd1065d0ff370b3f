"""`--time-budget`: how many steps fit into a given time on this machine."""

import time
from collections.abc import Sequence
from typing import Any

import keras

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import length_of
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import ConfigError
from hdc_keras.training.batches import Batches, TrainingVideos
from hdc_keras.training.distribution import Distribution
from hdc_keras.training.models import compiled_model

# The first two steps compile, and the others are enough for a mean (our choice).
_STEPS = 22
_UNTIMED_STEPS = 2
_LONGEST_TRIAL_S = 60.0
# What is left for decoding each video for the first time, kNN checks and checkpoints.
_SHARE_FOR_STEPS = 0.9


def steps_within(
    seconds: float, experiment: Experiment, records: Sequence[VideoRecord], distribution: Distribution
) -> tuple[int, float]:
    """Take some steps with a model that is then discarded, and compute how many fit into a time budget.

    Args:
        seconds: the budget for the whole run, which includes this trial.
        experiment: the run to fit. Its length does not matter.
        records: videos with splits.
        distribution: the devices to train on.

    Returns:
        The number of steps, and the seconds of one step, including waiting for data.

    Raises:
        ConfigError: not even one step fits.
        DataError: there are too few videos, or too many that cannot be decoded.
    """
    began = time.monotonic()
    with distribution.activate():
        with distribution.scope():
            model = compiled_model(experiment, length_of(experiment, records), distribution)
        videos = TrainingVideos.of(experiment, records)
        batches = Batches(videos.loader, experiment.data.workers, videos.policy, distribution).from_step(0)
        ends = _StepEnds()
        with videos.failures.named():
            model.fit(batches, steps_per_epoch=_STEPS, verbose=0, shuffle=False, callbacks=[ends])
    trial = time.monotonic() - began
    before = ends.times[_UNTIMED_STEPS - 1]
    step_seconds = (ends.times[-1] - before) / (len(ends.times) - _UNTIMED_STEPS)
    # The run builds and compiles its model once more, before its first step.
    steps = int(_SHARE_FOR_STEPS * (seconds - trial - (before - began)) / step_seconds)
    if steps < 1:
        raise ConfigError(
            f"--time-budget: {seconds:.0f} s are too short. Building the model took {before - began:.0f} s, trying it "
            f"{trial:.0f} s, and a step takes {step_seconds:.2g} s. Give more time, or a smaller network or batch."
        )
    return steps, step_seconds


class _StepEnds(keras.callbacks.Callback):
    """Notes when each step ends, and stops after the longest time of a trial, but not before the third step."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        float((logs or {})["loss"])  # waits until the device has finished the step
        self.times.append(time.monotonic())
        if len(self.times) > _UNTIMED_STEPS and self.times[-1] - self.times[0] > _LONGEST_TRIAL_S:
            self.model.stop_training = True
