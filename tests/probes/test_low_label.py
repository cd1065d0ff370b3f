from hdc_keras.config import EvaluateConfig
from hdc_keras.probes.low_label import draw_per_class
from hdc_keras.probes.registry import judge
from tests.probes.made_features import made_features


def test_the_same_number_is_drawn_from_each_class_and_smaller_draws_are_subsets():
    labels = list("aaaaaabbbbc")

    one, three = draw_per_class(labels, 1, seed=3), draw_per_class(labels, 3, seed=3)

    assert sorted(labels[row] for row in one) == list("abc")
    assert sorted(labels[row] for row in three) == list("aaabbbc")
    assert set(one) < set(three) and draw_per_class(labels, 3, seed=4) != three


def test_five_draws_are_made_and_budgets_that_use_every_video_are_left_out():
    settings = EvaluateConfig(linear_l2=(1e-2,))
    answers = judge("lowlabel", made_features(columns=("shape",)), {"P5": ["scaled"]}, settings, seeds=(7,))

    # There are 8 training videos of each class, fewer than 10, 20 or 334 per class.
    names = {f"{metric}, {count} per class" for metric in ("top1", "mean_class_accuracy") for count in (1, 5)}
    assert [set(answer.judgement.metrics) for answer in answers] == [names] * 5
    assert [answer.seed for answer in answers] == [7, 8, 9, 10, 11]
    assert len({tuple(answer.judgement.metrics.values()) for answer in answers}) > 1  # the draws differ
