import numpy as np
import pytest
from keras import ops

from hdc_keras.config import ContrastConfig
from hdc_keras.objective.weighting import InvarianceWeights, invariance

TASKS = ("spatial", "temporal")
EVERY_LEVEL = {task: ("P2", "P3", "P4", "P5") for task in TASKS}


def weights_of(layer):
    return ops.convert_to_numpy(layer.loss_weights())


def gap(anchor, positive):
    return float(invariance(*(ops.convert_to_tensor(x.astype("float32")) for x in (anchor, positive))))


def test_invariance_is_the_cosine_gap_between_matching_and_other_pairs():
    rng = np.random.default_rng(0)
    anchor, positive = rng.normal(size=(2, 6, 10))
    cosines = np.array([[a @ p / np.linalg.norm(a) / np.linalg.norm(p) for p in positive] for a in anchor])
    is_match = np.eye(6, dtype=bool)

    measured = gap(anchor, positive)

    assert measured == pytest.approx(cosines[is_match].mean() - cosines[~is_match].mean(), abs=1e-6)


def test_invariance_has_closed_forms():
    same, orthogonal = np.ones((4, 3), "float32"), np.eye(4, dtype="float32")

    assert gap(same, same) == pytest.approx(0.0, abs=1e-6)
    assert gap(orthogonal, orthogonal) == pytest.approx(1.0, abs=1e-6)


def test_measured_weights_follow_a_slow_reference_over_fifty_steps():
    config = ContrastConfig(levels=EVERY_LEVEL, gamma=2.0, momentum=0.9, weight_range=(0.2, 2.0))
    layer = InvarianceWeights(config, TASKS)
    rng = np.random.default_rng(0)
    average = None
    for _ in range(50):
        measured = rng.uniform(-0.1, 0.9, (4, 2)).astype("float32")
        layer.update(measured)
        average = measured if average is None else 0.9 * average + 0.1 * measured
        powered = np.maximum(average, 1e-3) ** 2
        clipped = np.clip(powered / powered.mean(axis=0), 0.2, 2.0)
        np.testing.assert_allclose(weights_of(layer), clipped / clipped.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.5, 3.0])
def test_weights_have_mean_one_for_each_task(gamma):
    layer = InvarianceWeights(ContrastConfig(levels=EVERY_LEVEL, gamma=gamma), TASKS)
    layer.update(np.float32([[0.1, 0.9], [0.2, 0.7], [0.4, 0.0], [0.9, -0.3]]))

    np.testing.assert_allclose(weights_of(layer).mean(axis=0), 1.0, atol=1e-6)


def test_before_the_first_measurement_weights_are_uniform():
    np.testing.assert_array_equal(
        weights_of(InvarianceWeights(ContrastConfig(levels=EVERY_LEVEL), TASKS)), np.ones((4, 2))
    )


def test_fixed_weights_are_those_given():
    two = {"spatial": ["P3", "P5"], "temporal": ["P3", "P5"]}
    config = ContrastConfig(weighting="fixed", levels=two, fixed_weights={"P3": 0.5, "P5": 2.0})

    np.testing.assert_array_equal(weights_of(InvarianceWeights(config, TASKS)), [[0.5, 0.5], [2.0, 2.0]])


def test_uniform_weights_stay_one_whatever_is_measured():
    layer = InvarianceWeights(ContrastConfig(levels=EVERY_LEVEL, weighting="uniform"), TASKS)
    layer.update(np.float32(np.random.default_rng(0).random((4, 2))))

    np.testing.assert_array_equal(weights_of(layer), np.ones((4, 2)))
