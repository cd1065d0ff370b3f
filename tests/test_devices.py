import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import hdc_keras
from hdc_keras import HDC, R3DTiny
from hdc_keras.backbones import VideoBackbone
from hdc_keras.config import TrainConfig
from hdc_keras.devices import has_accelerator, require_compiler
from hdc_keras.errors import ConfigError
from hdc_keras.training.distribution import Distribution

# The filter gradient of one padded 3D convolution over clips of two frames, in bfloat16 and in float32.
GRADIENTS = {
    "tensorflow": """
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
""",
    "torch": """
import torch
torch.backends.mkldnn.set_flags(False)
torch.manual_seed(0)
clips, kernel = torch.randn(16, 24, 2, 8, 8), 0.1 * torch.randn(24, 24, 3, 3, 3)
found = []
for dtype in (torch.float32, torch.bfloat16):
    w = kernel.to(dtype).requires_grad_()
    (torch.nn.functional.conv3d(clips.to(dtype), w, padding=1) ** 2).float().sum().backward()
    found.append(w.grad.float())
assert (found[1] - found[0]).abs().max() < 0.02 * found[0].abs().max()
""",
}


@pytest.mark.skipif(keras.backend.backend() not in GRADIENTS, reason="this backend has no oneDNN")
def test_without_onednn_bfloat16_gradients_are_correct():
    environment = {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    code = GRADIENTS[keras.backend.backend()]

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_bfloat16_is_refused_where_gradients_would_be_wrong(monkeypatch):
    # The convolutions count, not the views and heads.
    model = HDC(R3DTiny(dtype="mixed_bfloat16"), {"size": 16}, dtype="float32")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    remedies = {"tensorflow": "TF_ENABLE_ONEDNN_OPTS=0", "torch": r"mkldnn\.set_flags\(False\)"}
    if keras.backend.backend() in remedies and not has_accelerator():
        with pytest.raises(ConfigError, match=remedies[keras.backend.backend()]):
            model.compile("sgd")
    else:
        model.compile("sgd")

    with without_onednn(monkeypatch):
        model.compile("sgd")
    assert np.isfinite(float(model.optimizer.learning_rate))


def without_onednn(monkeypatch):
    """A context without oneDNN, as far as the backend can still leave it."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.backends.mkldnn.flags(enabled=False)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    return contextlib.nullcontext()


# Compiles a model in a new process, in which TensorFlow leaves oneDNN off unless `hdc_keras` turns it on.
COMPILES = """
import os, warnings
{imports}
from tensorflow.python.util import _pywrap_util_port
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    hdc_keras.HDC(hdc_keras.R3D([4] * 4, [1] * 4), {{"size": 16}}).compile("sgd")
print(_pywrap_util_port.IsMklEnabled(), sum("oneDNN is off" in str(warning.message) for warning in caught))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or has_accelerator(), reason="TensorFlow's kernels on a CPU"
)
def test_onednn_is_turned_on_or_its_absence_is_warned_of():
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    printed = [
        subprocess.run(
            [sys.executable, "-c", COMPILES.format(imports=imports)],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for imports, variables in (
            ("import hdc_keras, keras", {}),
            ("import keras, hdc_keras", {}),
            ("import keras, hdc_keras", {"TF_ENABLE_ONEDNN_OPTS": "0"}),
        )
    ]

    first, late, refused = printed
    # With AVX-512, TensorFlow turns oneDNN on by itself.
    assert first == ["True", "0"] and refused == ["False", "0"]
    assert late in (["False", "1"], ["True", "0"])


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


def test_regularisers_which_the_step_would_ignore_are_refused():
    clips = keras.layers.Input((4, 16, 16, 3))
    conv = keras.layers.Conv3D(4, 3, kernel_regularizer="l2", name="regularised")
    backbone = VideoBackbone(clips, {"P2": conv(clips)}, {"dtype": None})

    with pytest.raises(ConfigError, match="layer `regularised` has a regulariser"):
        HDC(backbone, {"size": 16}, {"levels": {"spatial": ["P2"], "temporal": ["P2"]}})


def test_compiling_is_refused_on_pytorch(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ConfigError, match=r"`train\.jit`: on: there is no XLA on PyTorch"):
        require_compiler(True)
    require_compiler(False)


def test_deterministic_pytorch_gets_what_it_asks_for_on_a_gpu():
    code = (
        "import os; os.environ['KERAS_BACKEND'] = 'torch'\n"
        "from hdc_keras.devices import make_deterministic; make_deterministic()\n"
        "import torch\n"
        "print(os.environ['CUBLAS_WORKSPACE_CONFIG'], torch.are_deterministic_algorithms_enabled())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.split() == [":4096:8", "True"]


@pytest.mark.parametrize(("precision", "warns"), [("float32", False), ("mixed_float16", True)])
def test_float16_on_a_cpu_is_warned_of(precision, warns):
    if has_accelerator():
        warns = False
    notes = Distribution(TrainConfig(precision=precision, strategy="one_device")).notes

    assert any("mixed_float16 is made for GPUs" in note for note in notes) == warns
