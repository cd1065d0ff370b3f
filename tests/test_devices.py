import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import hdc_keras
from hdc_keras import HDC, R3DTiny
from hdc_keras.devices import has_accelerator
from hdc_keras.errors import ConfigError

# The filter gradient of one padded 3D convolution over clips of two frames, in bfloat16 and in float32.
GRADIENTS = """
import numpy as np, tensorflow as tf
generator = np.random.default_rng(0)
clips, kernel = generator.normal(size=(16, 2, 8, 8, 24)), 0.1 * generator.normal(size=(3, 3, 3, 24, 24))
found = []
for dtype in ("float32", "bfloat16"):
    x, w = tf.constant(clips, dtype), tf.Variable(tf.constant(kernel, dtype))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(tf.nn.conv3d(x, w, [1] * 5, "SAME") ** 2, "float32"))
    found.append(tf.cast(tape.gradient(loss, w), "float32").numpy())
assert np.abs(found[1] - found[0]).max() < 0.02 * np.abs(found[0]).max()
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's kernels")
def test_without_onednn_bfloat16_gradients_are_correct():
    environment = {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}

    done = subprocess.run([sys.executable, "-c", GRADIENTS], env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_bfloat16_is_refused_where_gradients_would_be_wrong(monkeypatch):
    model = HDC(R3DTiny(dtype="mixed_bfloat16"), {"size": 16}, dtype="mixed_bfloat16")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    if keras.backend.backend() == "tensorflow" and not has_accelerator():
        with pytest.raises(ConfigError, match="TF_ENABLE_ONEDNN_OPTS=0"):
            model.compile("sgd")
    else:
        model.compile("sgd")

    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    model.compile("sgd")
    assert np.isfinite(float(model.optimizer.learning_rate))


def test_nothing_is_needed_that_only_unix_has():
    code = (
        "import os, sys; sys.modules['resource'] = None; del os.sched_getaffinity, os.sysconf\n"
        "from hdc_keras.devices import peak_memory, total_memory, usable_cores\n"
        "print(*peak_memory(), total_memory(), usable_cores() == os.cpu_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert has_accelerator() or done.stdout.strip() == "nan not measured on this system None True"
    # "%-d" is refused by Windows. Other directives with a hyphen are as well.
    package = Path(hdc_keras.__file__).parent
    assert not [path for path in package.rglob("*.py") if re.search(r"%-[a-zA-Z]", path.read_text(encoding="utf-8"))]
