"""A step in mixed_bfloat16 and in mixed_float16, compared with float32. CI runs this file on every backend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, keras, numpy as np
from keras import ops
from hdc_keras import HDC, R3D

# Videos of different colours and patterns: if all looked alike, their differences, and so the gradient, would be noise.
colours, patterns = (np.random.default_rng(0).integers(0, 128, (8, 1, *size, 3)) for size in ((1, 1, 1), (4, 5, 5)))
windows = (colours + patterns.repeat(2, 1).repeat(2, 2).repeat(8, 3).repeat(8, 4)).astype("uint8")

def step(precision, rounded_to=None):
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(precision)
    model = HDC(R3D([8, 8, 8, 8], [1, 1, 1, 1]), {"size": 32}, {"embedding_dim": 8, "temperature": 1.0}, seed=5)
    optimizer = keras.optimizers.SGD(1.0)
    if precision == "mixed_float16":  # the default scale is found by trial, in steps that are left out
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)
    model.compile(optimizer)
    for variable in model.trainable_variables if rounded_to else []:
        variable.assign(ops.cast(ops.cast(variable.value, rounded_to), "float32"))
    before = [ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    loss = model.train_on_batch(windows)
    assert model.step_record.count("skipped") == 0
    after = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    return loss, np.concatenate([(b - a).ravel() for b, a in zip(before, after)])

loss, gradient = step("float32")
for number in ("bfloat16", "float16"):
    half, rounded = step(f"mixed_{number}"), step("float32", rounded_to=number)
    changes = [float(np.linalg.norm(other - gradient) / np.linalg.norm(gradient)) for _, other in (half, rounded)]
    print(json.dumps([number, abs(half[0] / loss - 1), *changes]))
"""
# Half the distance between 1 and the next number.
ROUNDING = {"bfloat16": 2.0**-9, "float16": 2.0**-12}


@pytest.fixture(scope="module")
def differences():
    """Relative differences from float32 by number format, from a process without TensorFlow's oneDNN, whose
    bfloat16 gradients are wrong."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {number: values for number, *values in found}


@pytest.mark.parametrize("number", ["bfloat16", "float16"])
def test_a_step_in_half_precision_is_that_of_float32_within_rounding(differences, number):
    loss, gradient, gradient_of_rounded_weights = differences[number]

    print(number, loss, gradient, gradient_of_rounded_weights)
    assert loss < 4 * ROUNDING[number]
    # Rounding only the weights of the float32 step shows how sensitive its gradient is. In half precision, the
    # activations of all layers are rounded as well.
    assert gradient_of_rounded_weights / 10 < gradient < 8 * gradient_of_rounded_weights
