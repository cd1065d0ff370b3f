"""Micro-batches, rematerialisation, clipping and steps that are not finite, on every backend."""

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC
from hdc_keras.backbones import R3DTiny
from tests.plain_backbone import PlainConvolutions

WINDOWS = np.random.default_rng(0).integers(0, 256, (8, 2, 4, 20, 20, 3), np.uint8)


def gradients_of(backbone, windows=WINDOWS, **options):
    """What a step of plain SGD at rate 1 takes from the weights, and the model."""
    keras.utils.set_random_seed(3)
    # A temperature at which gradients are of the order of 1, so that float32 can tell 1e-5 of them.
    model = HDC(backbone(), views={"size": 16}, contrast={"embedding_dim": 8, "temperature": 1.0}, seed=5)
    model.compile(keras.optimizers.SGD(1.0), **options)
    before = [ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    model.train_on_batch(windows)
    return [b - ops.convert_to_numpy(v) for b, v in zip(before, model.trainable_variables, strict=True)], model


def largest_difference(ones, others):
    return max(float(np.abs(one - other).max()) for one, other in zip(ones, others, strict=True))


@pytest.fixture(scope="module")
def whole():
    return gradients_of(PlainConvolutions)


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_cached_gradients_are_those_of_the_whole_batch(whole, micro_batches):
    gradients, model = gradients_of(PlainConvolutions, micro_batches=micro_batches)

    assert largest_difference(gradients, whole[0]) < 1e-5 < max(np.abs(g).max() for g in gradients)
    for one, other in zip(model.non_trainable_variables, whole[1].non_trainable_variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-6)


def test_plain_accumulation_has_only_the_negatives_of_its_own_micro_batch(whole):
    gradients, _ = gradients_of(PlainConvolutions, micro_batches=4, accumulate="plain")

    assert largest_difference(gradients, whole[0]) > 1e-3


def test_plain_accumulation_averages_what_its_micro_batches_give():
    # Twice the same videos under the same draws would do; without any draw, the halves alone are that.
    def still(backbone, windows, **options):
        keras.utils.set_random_seed(3)
        views = {"size": 16, "crop_area": (1, 1), "crop_aspect": (1, 1), "flip": 0, "jitter": 0, "grey": 0, "blur": 0}
        contrast = {"embedding_dim": 8, "temperature": 1.0, "weighting": "uniform"}
        model = HDC(backbone(), views={**views, "fade_static": 0}, contrast=contrast)
        model.compile(keras.optimizers.SGD(1.0), **options)
        before = [ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
        model.train_on_batch(windows)
        return [b - ops.convert_to_numpy(v) for b, v in zip(before, model.trainable_variables, strict=True)]

    halves = [still(PlainConvolutions, half) for half in (WINDOWS[:4], WINDOWS[4:])]
    together = still(PlainConvolutions, WINDOWS, micro_batches=2, accumulate="plain")

    assert largest_difference(together, [(a + b) / 2 for a, b in zip(*halves, strict=True)]) < 1e-5


@pytest.mark.parametrize("backbone", [PlainConvolutions, R3DTiny])
def test_rematerialised_stages_give_the_same_step(backbone):
    plain, model = gradients_of(backbone)
    again, other = gradients_of(backbone, rematerialise=True)

    assert largest_difference(plain, again) < 1e-5
    for one, two in zip(model.non_trainable_variables, other.non_trainable_variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(two), rtol=1e-4, atol=1e-5)


def test_batch_norm_moves_once_for_each_micro_batch():
    _, model = gradients_of(R3DTiny, micro_batches=4)
    _, whole = gradients_of(R3DTiny)

    # Averages of four pieces, each taken with momentum .9: further from the start than one of all.
    moved = [np.abs(ops.convert_to_numpy(v)).sum() for v in model.pyramid.non_trainable_variables if "mean" in v.name]
    once = [np.abs(ops.convert_to_numpy(v)).sum() for v in whole.pyramid.non_trainable_variables if "mean" in v.name]
    assert all(many > one for many, one in zip(moved, once, strict=True))
    assert sum(moved) / sum(once) == pytest.approx((1 - 0.9**4) / 0.1, rel=0.15)


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_the_whole_gradient_is_clipped(whole, limit):
    gradients, _ = gradients_of(PlainConvolutions, clip_norm=limit)
    norm = np.sqrt(sum(np.square(g).sum() for g in whole[0]))
    scale = min(1.0, limit / norm)

    assert norm > 1e-3
    assert largest_difference(gradients, [g * scale for g in whole[0]]) < 1e-6


def test_a_step_that_is_not_finite_changes_nothing_and_is_named():
    model = gradients_of(PlainConvolutions)[1]
    kept = [*model.trainable_variables, *model.pyramid.variables, *model.objective.invariance_weights.variables]
    before = [ops.convert_to_numpy(v).copy() for v in kept]
    bad = WINDOWS.astype("float32")
    bad[3, 0, 1, 4, 4] = np.nan

    logs = model.train_on_batch(bad, return_dict=True)

    assert np.isfinite(logs["loss"]) and np.isfinite(logs["P2_spatial_loss"])
    for variable, old in zip(kept, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), old)
    assert int(model.step_record.skipped) == 1 and int(model.step_record.steps) == 2
    assert model.step_record.first_non_finite().startswith("step 2: P2_spatial_loss")


@pytest.mark.parametrize("options", [{"micro_batches": 0}, {"accumulate": "magic"}, {"clip_norm": -1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        gradients_of(PlainConvolutions, **options)
