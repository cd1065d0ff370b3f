"""PyTorch's kernels for the layers of a backbone compute what Keras computes."""

import keras
import numpy as np
import pytest
from keras import layers

from hdc_keras import HDC
from hdc_keras.backbones import build_backbone
from hdc_keras.step.torch_kernels import TorchNetwork
from tests.step.test_training_step import CONTRAST, VIEWS, WINDOWS, small_residual

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="these are the kernels of PyTorch")


def results(run, network, clips):
    """Outputs, new state, and gradients of a weighted sum of the outputs."""
    weights = [v.value.detach().clone().requires_grad_() for v in network.trainable_variables]
    state = [v.value.detach().clone() for v in network.non_trainable_variables]
    outputs, state = run(weights, state, clips)
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    scale = {name: torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype) for name, x in outputs.items()}
    loss = sum((x * scale[name]).square().mean() for name, x in outputs.items())
    return {
        **outputs,
        **{f"state of {v.path}": value for v, value in zip(network.non_trainable_variables, state, strict=True)},
        **{
            f"gradient of {v.path}": g
            for v, g in zip(network.trainable_variables, torch.autograd.grad(loss, weights), strict=True)
        },
    }


def require_equal(network, clips, tolerance=1e-3):
    # Keras computes batch norm in float32 even here, and the layers after it amplify its rounding.
    keras.utils.set_random_seed(0)
    for variable in network.variables:  # the initial statistics and biases hide errors
        variable.assign(variable + np.random.uniform(0.1, 0.4, variable.shape) * (len(variable.shape) == 1))
    expected = results(lambda *a: network.stateless_call(*a, training=True), network, clips)
    found = results(TorchNetwork(network), network, clips)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.shape == found[name].shape and value.dtype == found[name].dtype, name
        largest = float(value.detach().abs().max())
        allowed = tolerance * (30 if name.startswith("gradient") else 1) * max(largest, 1e-3)
        assert float((value - found[name]).detach().abs().max()) <= allowed, name


@pytest.mark.parametrize("name", ["r3d_tiny", "r2plus1d_tiny", "c3d_tiny", "s3d_tiny", "x3d_tiny", "videomae_vit_tiny"])
def test_a_backbone_gives_the_same_features_statistics_and_gradients(name):
    backbone = build_backbone(name, dtype="float64")

    require_equal(backbone.level_model(tuple(backbone.pyramid_outputs)), torch.rand(2, 16, 48, 48, 3).double())


def test_other_layers_and_tensors_that_are_read_twice_are_right_too():
    clips = layers.Input((4, 12, 12, 3), dtype="float64")
    x = layers.Conv3D(6, 2, strides=2, padding="same", activation="elu", dtype="float64")(clips)
    x = layers.BatchNormalization(scale=False, dtype="float64")(x)
    kept = layers.ReLU(max_value=1.0, dtype="float64")(x)
    x = layers.Add(dtype="float64")([layers.ReLU(dtype="float64")(x), x, kept])  # would be wrong with ReLU in place
    x = layers.Conv3D(6, 3, padding="same", groups=2, dtype="float64")(layers.SpatialDropout3D(0.0, dtype="float64")(x))
    x = layers.ZeroPadding3D(((0, 1), (1, 1), (1, 1)), dtype="float64")(x)
    frozen = layers.BatchNormalization(dtype="float64", trainable=False)
    x = layers.Conv3D(4, 3, dtype="float64")(frozen(x))
    network = keras.Model(clips, layers.AveragePooling3D((1, 2, 2), padding="same", dtype="float64")(x))

    require_equal(network, torch.rand(3, 4, 12, 12, 3).double())


@pytest.mark.parametrize("options", [{}, {"micro_batches": 2}, {"rematerialise": True, "clip_norm": 1.0}])
def test_no_tensor_becomes_a_numpy_array_within_a_step(monkeypatch, options):
    model = HDC(
        small_residual(),
        views=VIEWS | {"temporal_negatives": ["shifted", "reversed", "shuffled", "frozen"]},
        contrast=CONTRAST,
    )
    model.compile(keras.optimizers.SGD(0.1), **options)
    windows = torch.from_numpy(WINDOWS)
    conversions = []

    def refuse(self, *arguments):
        conversions.append(self)
        raise TypeError("can't convert cuda:0 device type tensor to numpy")  # what PyTorch says on a GPU

    monkeypatch.setattr(torch.Tensor, "__array__", refuse)
    loss = float(model.train_step(windows)["loss"])

    assert np.isfinite(loss) and not conversions
