"""A small network, trained for a few steps, and single steps of it in another precision.

`python -m tests.step.half_precision trained.npz` prints, for each half-precision format, the relative differences of
loss and gradient from those of float32: their medians over a few batches, because in a batch whose hidden unit has an
input close to 0, rounding switches this ReLU, and the gradient jumps.
"""

import json
import sys
from contextlib import nullcontext
from itertools import islice

import keras
import numpy as np
from keras import ops

from hdc_keras import HDC, R3D

STEPS = 12


def batches():
    """Windows of different colours and patterns: if all looked alike, their differences would be noise."""
    generator = np.random.default_rng(0)
    while True:
        colours, patterns = (generator.integers(0, 128, (16, 1, *size, 3)) for size in ((1, 1, 1), (4, 5, 5)))
        yield (colours + patterns.repeat(2, 1).repeat(8, 3).repeat(8, 4)).astype("uint8")


def compiled(precision, optimizer):
    keras.utils.set_random_seed(3)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    model = HDC(R3D([16, 16, 16, 16], [1, 1, 1, 1]), {"size": 32}, {"embedding_dim": 16}, seed=5)
    keras.config.set_dtype_policy(before)
    if precision == "mixed_float16":  # the default scale is found by trial, in steps that are left out
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)
    model.compile(optimizer)
    return model


def values(variables):
    return [ops.convert_to_numpy(variable).copy() for variable in variables]


def train():
    """Weights after a few steps. A new network's embeddings are almost equal, so rounding changes its gradient much."""
    model = compiled("float32", keras.optimizers.SGD(0.05, momentum=0.9))
    for windows in islice(batches(), STEPS):
        model.train_on_batch(windows)
    return values(model.trainable_variables)


def losses_and_gradients(precision, weights):
    """Of single steps from the same weights, on batches that are new to them."""
    model, found = compiled(precision, keras.optimizers.SGD(1.0)), []
    for windows in islice(batches(), STEPS, STEPS + 9):
        for variable, value in zip(model.trainable_variables, weights, strict=True):
            variable.assign(value)
        model.reset_metrics()
        loss = model.train_on_batch(windows)
        changes = [old - new for old, new in zip(weights, values(model.trainable_variables), strict=True)]
        found.append((loss, np.concatenate([change.ravel() for change in changes])))
    assert model.step_record.count("skipped") == 0
    return found


def without_onednn():
    """PyTorch without oneDNN, whose bfloat16 gradients are wrong. TensorFlow's is off in this whole process."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.backends.mkldnn.flags(enabled=False)


if __name__ == "__main__":
    weights = list(np.load(sys.argv[1]).values())
    exact = losses_and_gradients("float32", weights)
    for number in ("bfloat16", "float16"):
        with without_onednn() if number == "bfloat16" else nullcontext():
            halves = losses_and_gradients(f"mixed_{number}", weights)
        differences = [
            (abs(half / loss - 1), np.linalg.norm(half_gradient - gradient) / np.linalg.norm(gradient))
            for (half, half_gradient), (loss, gradient) in zip(halves, exact, strict=True)
        ]
        print(json.dumps([number, *np.median(differences, axis=0)]))
