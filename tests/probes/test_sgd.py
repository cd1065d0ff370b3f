import keras
import numpy as np

from hdc_keras.config import EvaluateConfig
from hdc_keras.probes.registry import judge
from hdc_keras.probes.sgd import adam_update, momentum_update
from hdc_keras.training.optimizers import WarmupCosine
from tests.probes.made_features import made_features


def judged(protocol, features):
    (answer,) = judge(protocol, features, {"direction": ["direction"]}, EvaluateConfig())
    return answer.judgement


def test_linear_cvrl_ignores_the_length_of_features():
    # Powers of two, so the normalised features are equal bit for bit.
    plain, varied = (made_features(columns=("shape",), lengths=lengths) for lengths in (None, "varied"))

    expected, found = judged("linear-cvrl", plain), judged("linear-cvrl", varied)

    assert expected.metrics["top1"] >= 0.9 and found.predicted == expected.predicted


def test_linear_severe_does_not_normalise():
    plain, tiny = (made_features(300, ("shape",), lengths) for lengths in (None, "tiny"))

    assert judged("linear-severe", plain).metrics["top1"] >= 0.9
    # With its learning rate, weights cannot grow enough for such small features.
    assert judged("linear-severe", tiny).metrics["top1"] < 0.7


def test_the_updates_equal_those_of_keras():
    random = np.random.default_rng(2)
    gradients = [[random.normal(size=shape).astype("float32") for shape in ((4, 3), (3,))] for _ in range(5)]
    pairs = [
        (
            momentum_update(lambda step: 0.25 * (1 + np.cos(np.pi * step / 5)), 0.9),
            keras.optimizers.SGD(WarmupCosine(0.5, 0, 5), momentum=0.9),
        ),
        (adam_update(lambda step: 0.01), keras.optimizers.Adam(0.01, epsilon=1e-8)),
    ]
    for update, optimizer in pairs:
        values = [np.ones((4, 3)), np.ones(3)]
        variables = [keras.Variable(value.astype("float32")) for value in values]
        for step, gradient in enumerate(gradients):
            values = [value - change for value, change in zip(values, update(step, gradient), strict=True)]
            optimizer.apply(gradient, variables)
        for value, variable in zip(values, variables, strict=True):
            np.testing.assert_allclose(value, keras.ops.convert_to_numpy(variable), atol=1e-5)
