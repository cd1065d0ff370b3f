import numpy as np
import pytest
from keras import ops

from hdc_keras.objective.losses import info_nce


def unit(*shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def slow_info_nce(anchor, positive, temperature, negatives=None, negative_weight=1.0):
    """The same loss with loops, one term at a time, in float64."""
    anchor, positive = anchor.astype("float64"), positive.astype("float64")
    total = 0.0
    for query, candidates, joins in ((anchor, positive, False), (positive, anchor, True)):
        for i in range(len(query)):
            right = np.exp(query[i] @ candidates[i] / temperature)
            everything = sum(np.exp(query[i] @ candidate / temperature) for candidate in candidates)
            if joins and negatives is not None:
                for kind in negatives.astype("float64"):
                    everything += negative_weight * np.exp(query[i] @ kind[i] / temperature)
            total -= np.log(right / everything)
    return total / (2 * len(anchor))


@pytest.mark.parametrize("batch", [2, 5, 16])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("kinds", [0, 1, 3])
@pytest.mark.parametrize("weight", [1.0, 8.0])
def test_info_nce_equals_a_slow_reference(batch, temperature, kinds, weight):
    anchor, positive = unit(batch, 12, seed=1), unit(batch, 12, seed=2)
    negatives = unit(kinds, batch, 12, seed=3) if kinds else None

    loss = info_nce(anchor, positive, temperature, negatives, weight).loss

    assert float(loss) == pytest.approx(slow_info_nce(anchor, positive, temperature, negatives, weight), abs=1e-5)


@pytest.mark.parametrize("kinds", [0, 2])
def test_equal_embeddings_cost_the_log_of_the_number_of_candidates(kinds):
    same = np.tile(unit(1, 8), (6, 1))
    negatives = np.tile(same, (kinds, 1, 1)) if kinds else None

    loss = info_nce(same, same, 0.1, negatives).loss

    assert float(loss) == pytest.approx((np.log(6) + np.log(6 + kinds)) / 2, abs=1e-5)


@pytest.mark.parametrize("kinds", [0, 2])
@pytest.mark.parametrize("batch", [2, 7, 64])
def test_a_tie_is_no_hit(batch, kinds):
    same = np.tile(np.array([0.5, 0.5, -0.5, 0.5], "float32"), (batch, 1))
    negatives = np.tile(same, (kinds, 1, 1)) if kinds else None

    assert float(info_nce(same, same, 0.1, negatives).accuracy) == 0.0


def test_accuracy_is_the_share_of_partners_nearer_than_any_other_candidate():
    anchor, positive = np.eye(4, dtype="float32"), np.eye(4, dtype="float32")[[0, 1, 1, 3]]

    # Anchors 0 and 3 are hits; 1 has two equal candidates, 2 has four. Positives 0, 1 and 3 are hits.
    assert float(info_nce(anchor, positive, 0.1).accuracy) == (2 / 4 + 3 / 4) / 2


def test_a_temporal_negative_as_near_as_the_partner_is_no_hit():
    pairs = np.eye(4, dtype="float32")
    negatives = np.stack([pairs[[0, 2, 3, 1]]])  # only that of video 0 equals the partner

    assert float(info_nce(pairs, pairs, 0.5, negatives).accuracy) == (1 + 3 / 4) / 2


def test_orthogonal_pairs_have_a_closed_form():
    pairs = np.eye(5, dtype="float32")
    result = info_nce(pairs, pairs, 0.5)

    assert float(result.loss) == pytest.approx(-np.log(np.exp(2) / (np.exp(2) + 4)), abs=1e-6)
    assert float(result.accuracy) == 1.0


def test_opposite_pairs_are_the_worst_case():
    pairs = np.eye(4, dtype="float32")
    result = info_nce(pairs, -pairs, 1.0)

    assert float(result.loss) == pytest.approx(-np.log(np.exp(-1) / (np.exp(-1) + 3)), abs=1e-6)
    assert float(result.accuracy) == 0.0


def test_info_nce_is_symmetric():
    anchor, positive = unit(7, 8, seed=1), unit(7, 8, seed=2)

    assert float(info_nce(anchor, positive, 0.1).loss) == pytest.approx(
        float(info_nce(positive, anchor, 0.1).loss), abs=1e-5
    )


def test_a_weight_of_n_equals_n_copies_of_the_negatives():
    anchor, positive, negatives = unit(5, 8, seed=1), unit(5, 8, seed=2), unit(1, 5, 8, seed=3)

    weighted = info_nce(anchor, positive, 0.2, negatives, 3.0).loss
    repeated = info_nce(anchor, positive, 0.2, np.repeat(negatives, 3, axis=0)).loss

    assert float(weighted) == pytest.approx(float(repeated), abs=1e-5)


def test_small_temperatures_do_not_overflow():
    loss = info_nce(unit(8, 4), unit(8, 4), 1e-3).loss

    assert np.isfinite(float(ops.convert_to_numpy(loss)))
