"""Which videos share batch statistics. CI runs this file on every backend."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC
from hdc_keras.step.network import Videos
from hdc_keras.step.options import StepOptions
from hdc_keras.step.replicas import ReplicaGroup
from hdc_keras.step.shuffling import shuffles_statistics, with_shuffled_positives
from tests.plain_backbone import PlainConvolutions
from tests.step.test_training_step import CONTRAST, STILL, VIEWS, WINDOWS, largest_difference, small_residual


def gradients(shuffles, **options):
    keras.utils.set_random_seed(3)
    model = HDC(PlainConvolutions(), views=VIEWS | STILL, contrast=CONTRAST, seed=5)
    model.compile(keras.optimizers.SGD(1.0), **options)
    model.step_options = dataclasses.replace(model.step_options, shuffle_statistics=shuffles)
    before = [ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    model.train_on_batch(WINDOWS)
    return [b - ops.convert_to_numpy(v) for b, v in zip(before, model.trainable_variables, strict=True)]


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_features_of_shuffled_positives_return_to_their_videos(micro_batches):
    # Without batch norm, it does not matter in which micro-batch a positive is computed.
    whole, shuffled = gradients(False), gradients(True, micro_batches=micro_batches)

    assert largest_difference(whole, shuffled) < 1e-4 < max(np.abs(g).max() for g in whole)


def test_positives_change_places_with_their_windows_and_draws():
    model = HDC(small_residual(), views=VIEWS, contrast=CONTRAST, seed=5)
    model.compile("sgd", micro_batches=4)
    draws = model.view_generator.draw(8, (4, 20, 20))
    videos = Videos(ops.convert_to_tensor(WINDOWS), draws)
    assert shuffles_statistics(model, ReplicaGroup())

    orders = []
    for _ in range(3):
        found, order = with_shuffled_positives(model, ReplicaGroup(), videos, draws)
        orders.append(ops.convert_to_numpy(order).tolist())
        windows, moved = found.of_positives
        np.testing.assert_array_equal(ops.convert_to_numpy(windows), WINDOWS[orders[-1]])
        boxes = ops.convert_to_numpy(draws["other_geometry"]["box"])
        np.testing.assert_array_equal(ops.convert_to_numpy(moved["other_geometry"]["box"]), boxes[orders[-1]])
        assert found.windows is videos.windows and found.draws is videos.draws

    assert all(sorted(order) == list(range(8)) for order in orders)
    assert orders[0] != orders[1] != orders[2]  # drawn anew for each step


def test_the_positives_of_a_view_generator_can_show_other_videos():
    model = HDC(small_residual(), views=VIEWS, contrast=CONTRAST, seed=5)
    draws = model.view_generator.draw(8, (4, 20, 20))
    own = ops.convert_to_numpy(model.view_generator.apply(WINDOWS, draws))
    order = np.roll(np.arange(8), 3)
    moved = keras.tree.map_structure(lambda x: ops.take(x, order, axis=0), draws)
    found = ops.convert_to_numpy(model.view_generator.apply(WINDOWS, draws, (WINDOWS[order], moved)))

    np.testing.assert_allclose(found[:, 0], own[:, 0], atol=1e-6)
    np.testing.assert_allclose(found[:, 1:], own[order, 1:], atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "options", "expected"),
    [
        (small_residual, {}, False),  # one group
        (small_residual, {"micro_batches": 2}, True),
        (small_residual, {"micro_batches": 2, "shuffle_statistics": False}, False),
        (small_residual, {"micro_batches": 2, "accumulate": "plain"}, False),  # candidates are in the same group
        (PlainConvolutions, {"micro_batches": 2}, False),  # no batch norm
    ],
)
def test_statistics_are_shuffled_only_where_they_could_tell_the_positive(backbone, options, expected):
    model = HDC(backbone(), views=VIEWS, contrast=CONTRAST)
    model.compile("sgd", **options)

    assert shuffles_statistics(model, ReplicaGroup()) == expected
    assert StepOptions().shuffle_statistics is False
