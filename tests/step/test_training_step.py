"""Micro-batches, rematerialisation, clipping and non-finite steps. CI runs this file on every backend."""

import re

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC, R3D
from tests.plain_backbone import PlainConvolutions

WINDOWS = np.random.default_rng(0).integers(0, 256, (8, 2, 4, 20, 20, 3), np.uint8)


VIEWS = {"size": 16}
# At this temperature gradients are of the order of 1, so that float32 resolves differences of 1e-5.
CONTRAST = {"embedding_dim": 8, "temperature": 1.0}
# Without augmentation, every draw gives the same view. With uniform weights, videos then interact only as negatives.
STILL = {"crop_area": (1, 1), "crop_aspect": (1, 1), "flip": 0, "jitter": 0, "grey": 0, "blur": 0, "fade_static": 0}


def small_residual():
    """A backbone with batch norm and shortcuts, one block for each stage."""
    return R3D([4, 4, 6, 8], [1, 1, 1, 1], name="small")


def gradients_of(backbone, windows=WINDOWS, views=None, contrast=None, **options):
    """What one step of plain SGD at learning rate 1 subtracts from the weights, and the model."""
    keras.utils.set_random_seed(3)
    model = HDC(backbone(), views=VIEWS | (views or {}), contrast=CONTRAST | (contrast or {}), seed=5)
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
def test_cached_gradients_equal_those_of_the_whole_batch(whole, micro_batches):
    gradients, model = gradients_of(PlainConvolutions, micro_batches=micro_batches)

    assert largest_difference(gradients, whole[0]) < 1e-5 < max(np.abs(g).max() for g in gradients)
    for one, other in zip(model.non_trainable_variables, whole[1].non_trainable_variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-6)


def test_plain_accumulation_uses_only_the_negatives_of_each_micro_batch(whole):
    gradients, _ = gradients_of(PlainConvolutions, micro_batches=2, accumulate="plain")

    assert largest_difference(gradients, whole[0]) > 1e-3


def test_plain_accumulation_averages_the_gradients_of_its_micro_batches():
    settings = {"views": STILL, "contrast": {"weighting": "uniform"}}
    halves = [gradients_of(PlainConvolutions, half, **settings)[0] for half in (WINDOWS[::2], WINDOWS[1::2])]
    together, _ = gradients_of(PlainConvolutions, WINDOWS, micro_batches=2, accumulate="plain", **settings)

    assert largest_difference(together, [(a + b) / 2 for a, b in zip(*halves, strict=True)]) < 1e-5
    assert largest_difference(halves[0], halves[1]) > 1e-3


@pytest.mark.parametrize("backbone", [PlainConvolutions, small_residual])
def test_rematerialised_stages_give_the_same_step(backbone):
    plain, model = gradients_of(backbone)
    again, other = gradients_of(backbone, rematerialise=True)

    assert largest_difference(plain, again) < 1e-5
    for one, two in zip(model.non_trainable_variables, other.non_trainable_variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(two), rtol=1e-4, atol=1e-5)


def test_batch_norm_moves_once_for_each_micro_batch():
    _, model = gradients_of(small_residual, micro_batches=4)
    _, whole = gradients_of(small_residual)

    # Four updates with momentum 0.9 move the averages further from their start than one update does.
    moved = [np.abs(ops.convert_to_numpy(v)).sum() for v in model.pyramid.non_trainable_variables if "mean" in v.name]
    once = [np.abs(ops.convert_to_numpy(v)).sum() for v in whole.pyramid.non_trainable_variables if "mean" in v.name]
    assert all(many > one for many, one in zip(moved, once, strict=True))
    assert sum(moved) / sum(once) == pytest.approx((1 - 0.9**4) / 0.1, rel=0.15)


def test_the_invariance_average_moves_once_a_step_over_plain_micro_batches():
    model = HDC(PlainConvolutions(), views=VIEWS, contrast=CONTRAST | {"momentum": 0.5}, seed=5)
    model.compile(keras.optimizers.SGD(0.1), micro_batches=4, accumulate="plain")
    weights = model.objective.invariance_weights
    weights.updates.assign(1.0)  # the first update would set the average, not move it

    measured = model.train_on_batch(WINDOWS, return_dict=True)

    average = ops.convert_to_numpy(weights.average)
    for (level, task), value in zip(model.objective.pairs, average[average != 0], strict=True):
        assert value == pytest.approx(0.5 * measured[f"{level}_{task}_invariance"], rel=1e-4)


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_the_gradient_is_clipped_by_its_global_norm(whole, limit):
    gradients, _ = gradients_of(PlainConvolutions, clip_norm=limit)
    norm = np.sqrt(sum(np.square(g).sum() for g in whole[0]))
    scale = min(1.0, limit / norm)

    assert norm > 1e-3
    assert largest_difference(gradients, [g * scale for g in whole[0]]) < 1e-6


def test_a_non_finite_step_changes_nothing_and_is_named():
    good = WINDOWS.astype("float32")
    _, model = gradients_of(PlainConvolutions, good)
    means = {id(v) for v in model.objective.means.variables}
    kept = [*model.pyramid.variables, *(v for v in model.objective.variables if id(v) not in means)]
    before = [ops.convert_to_numpy(v).copy() for v in kept]
    bad = good.copy()
    bad[3, 0, 1, 4, 4] = np.nan

    logs = model.train_on_batch(bad, return_dict=True)

    assert np.isfinite(logs["loss"]) and np.isfinite(logs["P2_spatial_loss"])
    for variable, old in zip(kept, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), old)
    assert int(model.step_record.skipped) == 1 and int(model.step_record.steps) == 2
    assert model.step_record.first_non_finite().startswith("step 2: P2_spatial_loss")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batches": 0}, "`micro_batches` must be 1 or more. Received: 0"),
        ({"accumulate": "magic"}, "`accumulate` must be `cached` or `plain`. Received: magic"),
        ({"clip_norm": -1.0}, "`clip_norm` must be positive. Received: -1.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gradients_of(PlainConvolutions, **options)
