"""A step in mixed_bfloat16 and in mixed_float16, compared with float32. CI runs this file on every backend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.step import half_precision

# Half the distance between 1 and the next number.
ROUNDING = {"bfloat16": 2.0**-9, "float16": 2.0**-12}


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    """Relative differences from float32 by number format, from a process without TensorFlow's oneDNN, whose
    bfloat16 gradients are wrong."""
    trained = tmp_path_factory.mktemp("precision") / "trained.npz"
    np.savez(trained, *half_precision.train())
    done = subprocess.run(
        [sys.executable, "-m", "tests.step.half_precision", trained],
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
    loss, gradient = differences[number]

    print(number, loss / ROUNDING[number], gradient)
    assert loss < 4 * ROUNDING[number]
    # Each layer rounds its activations, and in the backward pass their gradients.
    assert 2 * ROUNDING[number] < gradient < {"bfloat16": 0.15, "float16": 0.06}[number]
