"""A small experiment on the videos of a class folder, and helpers for the tests of runs and training."""

import keras
import numpy as np
from keras import ops

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.pretraining import pretrain


def experiment_on(folder, **train):
    """Four epochs of three steps. Only the two shallowest stages carry a loss, so the deeper ones are never traced."""
    return Experiment.model_validate(
        {
            "name": "test",
            "data": {"path": str(folder), "frames": 4, "decode_size": (20, 20)},
            "views": {"size": 16},
            "model": {"backbone": "r3d_tiny"},
            "contrast": {"embedding_dim": 8, "levels": {"spatial": ["P2"], "temporal": ["P3"]}},
            "train": {"epochs": 4, "batch_size": 2, "learning_rate": 0.02, "knn_every": 0, **train},
        }
    )


def changed(experiment, **sections):
    """The experiment with some keys of some sections changed."""
    values = experiment.model_dump()
    for section, keys in sections.items():
        values[section] |= keys
    return Experiment.model_validate(values)


def run_of(tmp_path, experiment, name="run"):
    run = RunDirectory(tmp_path / name)
    run.create(experiment)
    return run


def pretrain_run(run, **options):
    experiment = run.experiment()
    return pretrain(experiment, run, load_videos(experiment).records, **options)


def weights_of(run):
    model, _ = run.checkpoints.load()
    return [ops.convert_to_numpy(variable) for variable in model.weights]


def assert_identical(ones, others):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one, other)


class AfterSteps(keras.callbacks.Callback):
    """Calls a function after a number of steps."""

    def __init__(self, steps, function):
        super().__init__()
        self.left, self.function = steps, function

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.function()
