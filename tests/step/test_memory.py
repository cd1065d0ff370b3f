"""The memory estimate, compared with what PyTorch keeps for the backward pass and with what an H100 needed."""

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC
from hdc_keras.backbones import R3D18, R2Plus1D18, VideoMAEViTTiny, X3DTiny
from hdc_keras.step.memory import step_memory
from hdc_keras.step.network import Videos, values_of
from hdc_keras.step.pullbacks import pullback

WINDOWS = (2, 16, 128, 171, 3)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="this counts what PyTorch keeps")
@pytest.mark.parametrize("backbone", [R3D18, R2Plus1D18, X3DTiny, VideoMAEViTTiny])
def test_activations_are_those_that_pytorch_keeps(backbone):
    import torch

    model = HDC(backbone(), {"size": 64})
    model.compile("sgd")
    windows = np.zeros((2, 2, 8, 72, 72, 3), "uint8")
    videos = Videos(ops.convert_to_tensor(windows), model.view_generator.draw(2, (8, 72, 72)))
    weights, state = (
        values_of(kind) for kind in (model.pyramid.trainable_variables, model.pyramid.non_trainable_variables)
    )
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = pullback(lambda values: model.features_function(values, state, videos), weights)

    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    kernels = sum(w.numel() * 4 for w in weights if w.ndim == 5)  # copies in PyTorch's layout
    found = step_memory(model, 2, windows.shape[1:]).activations
    assert result and found == pytest.approx(sum(kept.values()) - kernels, rel=0.02)


# `benchmarks/gpu.py` on an H100 with PyTorch 2.11, R3D-18: GiB.
@pytest.mark.parametrize(
    ("precision", "videos", "options", "measured"),
    [
        ("mixed_bfloat16", 32, {}, 10.0),
        ("mixed_bfloat16", 64, {}, 19.62),
        ("float32", 32, {}, 17.22),
        ("mixed_bfloat16", 64, {"micro_batches": 4}, 5.88),
        ("mixed_bfloat16", 64, {"rematerialise": True}, 11.90),
    ],
)
def test_the_estimate_is_near_what_a_gpu_needed(monkeypatch, precision, videos, options, measured):
    monkeypatch.setattr("hdc_keras.devices.has_accelerator", lambda: True)  # else bfloat16 is refused
    keras.config.set_dtype_policy(precision)
    try:
        model = HDC(R3D18(), {"size": 112})
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("sgd", **options)

    assert step_memory(model, videos, WINDOWS).total / 2**30 == pytest.approx(measured, rel=0.2)
