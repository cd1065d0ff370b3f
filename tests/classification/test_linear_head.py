import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hdc_keras.classification.linear_head import fit_head


def clusters(classes, videos=12, channels=6, spread=1.0, seed=0):
    """Features of `videos` videos of each class, of very different scales, and their classes and groups."""
    rng = np.random.default_rng(seed)
    labels = [name for name in classes for _ in range(videos)]
    centres = rng.normal(size=(len(classes), channels))
    values = np.concatenate([centre + spread * rng.normal(size=(videos, channels)) for centre in centres])
    scales = 10.0 ** np.arange(channels) / 100
    return (values * scales + 3 * scales).astype(np.float32), labels, [f"g{row % 4}" for row in range(len(labels))]


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "c", "d"]])
def test_the_head_gives_the_probabilities_of_scikit_learn_on_standardised_features(classes):
    features, labels, groups = clusters(classes)

    head = fit_head(features, labels, groups, classes, [0.01])

    inputs = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    expected = LogisticRegression(C=1 / (0.01 * len(labels)), class_weight="balanced", max_iter=500).fit(inputs, labels)
    assert head.kernel.dtype == head.bias.dtype == np.float32
    np.testing.assert_allclose(softmax(features @ head.kernel + head.bias), expected.predict_proba(inputs), atol=1e-4)


def test_a_class_without_videos_gets_the_lowest_score():
    features, labels, groups = clusters(["a", "c"])

    head = fit_head(features, labels, groups, ["a", "b", "c"], [0.1])

    assert softmax(features @ head.kernel + head.bias)[:, 1].max() < 0.01


def test_noise_is_fitted_with_a_strong_penalty_and_clear_classes_with_a_weak_one():
    clear, labels, groups = clusters(["a", "b", "c"], spread=0.05)
    noise = np.random.default_rng(1).normal(size=clear.shape).astype(np.float32)

    sure, unsure = (
        softmax(x @ head.kernel + head.bias).max(axis=1).mean()
        for x in (clear, noise)
        for head in [fit_head(x, labels, groups, ["a", "b", "c"], [1e-4, 1.0, 100.0])]
    )

    assert sure > 0.99 and unsure < 0.5


def test_rare_classes_count_as_much_as_frequent_ones():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(-0.5, 1, (190, 1)), rng.normal(0.5, 1, (10, 1))]).astype(np.float32)
    labels = ["often"] * 190 + ["rare"] * 10

    head = fit_head(features, labels, [str(row) for row in range(200)], ["often", "rare"], [0.01])

    # Halfway between the classes, both are as likely.
    assert abs(float((np.zeros((1, 1)) @ head.kernel + head.bias)[0] @ [1, -1])) < 0.7
