"""Backbones with layers of this package train on every backend: each weight gets a gradient."""

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC
from hdc_keras.backbones import build_backbone

WINDOWS = np.random.default_rng(0).integers(0, 256, (4, 2, 4, 40, 40, 3), dtype=np.uint8)
TINY, PUBLISHED = ["videomae_vit_tiny", "x3d_tiny"], ["videomae_vit_s", "x3d_s"]
# X3D's blocks start as their shortcut: the first step reaches only the scale of their last batch norm, and must move it
# so far that the second step moves the rest by more than rounding.
RATES = {"x3d_tiny": 1.0, "x3d_s": 1.0}


def trained(name, **options):
    """The model after two steps, and the values that its weights had before."""
    keras.utils.set_random_seed(0)
    model = HDC(build_backbone(name), {"size": 32}, {"embedding_dim": 8})
    model.compile(keras.optimizers.SGD(RATES.get(name, 0.01)), **options)
    before = [np.array(ops.convert_to_numpy(variable)) for variable in model.trainable_variables]
    losses = model.fit(WINDOWS, batch_size=4, epochs=2, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses))
    return model, before


def require_all_trained(model, before):
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert not np.array_equal(ops.convert_to_numpy(variable), old), variable.path


@pytest.mark.parametrize("name", TINY)
def test_steps_train_all_weights_of_a_tiny_network(name):
    require_all_trained(*trained(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_steps_train_all_weights_of_a_published_network(name):
    require_all_trained(*trained(name))


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX compiles it for minutes on a CPU")
@pytest.mark.parametrize("name", TINY)
def test_rematerialising_a_tiny_network_changes_nothing(name):
    usual, _ = trained(name)
    rematerialised, _ = trained(name, rematerialise=True)

    for one, other in zip(usual.trainable_variables, rematerialised.trainable_variables, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(other), ops.convert_to_numpy(one), rtol=1e-3, atol=1e-4, err_msg=one.path
        )
