import numpy as np
import pytest

from hdc_keras.classification.interval import share_interval


def singles(count):
    return [str(number) for number in range(count)]


@pytest.mark.parametrize(
    ("right", "of", "expected"),
    # Wilson's interval, from `statsmodels.stats.proportion.proportion_confint(right, of, method="wilson")`.
    [(20, 20, (0.8389, 1.0)), (0, 20, (0.0, 0.1611)), (19, 20, (0.7639, 0.9911)), (50, 100, (0.4038, 0.5962))],
)
def test_single_videos_have_the_interval_of_wilson(right, of, expected):
    low, high = share_interval([True] * right + [False] * (of - right), singles(of))

    assert (low, high) == pytest.approx(expected, abs=1e-3)


def test_groups_that_are_right_or_wrong_together_say_less_than_as_many_videos():
    is_right = np.repeat([True, True, True, False], 25).tolist()

    low, high = share_interval(is_right, np.repeat(singles(4), 25).tolist())
    as_videos = share_interval([True, True, True, False], singles(4))

    assert low < as_videos[0] and high > as_videos[1]


def test_many_groups_that_do_not_matter_change_little():
    is_right = [True, True, True, False] * 25
    groups = np.repeat(singles(25), 4).tolist()

    assert share_interval(is_right, groups) == pytest.approx(share_interval(is_right, singles(100)), abs=0.01)


def test_groups_that_are_all_right_count_once_each_and_one_group_says_nothing():
    assert share_interval([True] * 20, ["a", "b"] * 10) == pytest.approx(share_interval([True, True], ["a", "b"]))
    assert share_interval([True, False, True], ["a"] * 3) == (0.0, 1.0)


@pytest.mark.parametrize("deviation", [0.0, 1.5])
@pytest.mark.parametrize(("count", "size"), [(2, 10), (3, 10), (9, 10), (20, 5)])
def test_the_interval_holds_the_truth_at_least_as_often_as_it_says(deviation, count, size):
    rng = np.random.default_rng(0)
    groups = np.repeat(singles(count), size).tolist()
    # Logits of groups are drawn, so that the truth is their mean probability.
    truth = (1 / (1 + np.exp(-(0.5 + deviation * rng.normal(size=100_000))))).mean()
    held = 0
    for _ in range(600):
        chances = np.repeat(1 / (1 + np.exp(-(0.5 + deviation * rng.normal(size=count)))), size)
        low, high = share_interval((rng.random(count * size) < chances).tolist(), groups)
        held += low <= truth <= high

    assert held / 600 >= 0.92
