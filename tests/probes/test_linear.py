import numpy as np
import pytest

from hdc_keras.probes.linear import linear_probe

PENALTIES = (1e-6, 1e-2, 1e2)


def halves(videos=60):
    random = np.random.default_rng(0)
    features = random.normal(size=(videos, 40)).astype("float32")
    return features, ["a" if row[0] + row[1] > 0 else "b" for row in features]


def test_the_penalty_does_not_depend_on_the_test_videos():
    features, labels = halves()

    def probe(test):
        return linear_probe(features[:40], labels[:40], test, [str(i) for i in range(40)], PENALTIES)

    scores, classes, penalty = probe(features[40:])
    mirrored_scores, _, same_penalty = probe(-features[40:])

    assert penalty == same_penalty and classes == ["a", "b"]
    predicted = np.array(classes)[scores.argmax(axis=1)]
    assert (predicted == np.array(labels[40:])).mean() > 0.6
    assert (mirrored_scores.argmax(axis=1) != scores.argmax(axis=1)).any()


def labelled_by_a_small_channel():
    """One channel is exact but small beside five noisy ones: only a weak penalty lets the classifier use it."""
    sign = np.where(np.arange(400) % 2, -1.0, 1.0)[:, None]
    return np.concatenate([0.02 * sign, 0.05 * np.random.default_rng(1).normal(size=(400, 5))], axis=1)


def labelled_by_noisy_channels():
    """Forty weakly informative channels: with few videos, a weak penalty overfits."""
    sign = np.where(np.arange(400) % 2, -1.0, 1.0)[:, None]
    return 0.3 * sign + 2 * np.random.default_rng(0).normal(size=(400, 40))


@pytest.mark.parametrize("make, best", [(labelled_by_a_small_channel, 1e-6), (labelled_by_noisy_channels, 1e2)])
@pytest.mark.parametrize("penalties", [PENALTIES, PENALTIES[::-1]])
def test_the_penalty_that_generalises_best_is_selected(make, best, penalties):
    features, labels = make().astype("float32"), np.array(["ab"[i % 2] for i in range(400)])
    groups = [str(i) for i in range(60)]

    def probe(penalties):
        scores, classes, selected = linear_probe(features[:60], labels[:60], features[60:], groups, penalties)
        return (np.array(classes)[scores.argmax(axis=1)] == labels[60:]).mean(), selected

    accuracy, selected = probe(penalties)

    assert selected == best
    assert all(accuracy > probe([other])[0] + 0.05 for other in penalties if other != best)


def test_videos_of_a_group_are_not_divided_when_the_penalty_is_selected():
    # Each group has a channel that identifies it, and so its class. A penalty weak enough to use these channels is best
    # if groups are divided, and useless if not.
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(12), 5)
    labels = ["ab"[group % 2] for group in groups]
    sign = np.where(np.array(labels) == "a", 1.0, -1.0)[:, None]
    features = np.concatenate([sign + 3 * random.normal(size=(60, 1)), np.eye(12)[groups]], axis=1).astype("float32")

    def selected(groups):
        return linear_probe(features, labels, features, [str(group) for group in groups], PENALTIES)[2]

    assert selected(np.arange(60)) == 1e-6  # every video is a group by itself
    assert selected(groups) > 1e-6


def test_too_few_groups_use_the_first_penalty():
    features, labels = halves(12)

    assert linear_probe(features, labels, features, ["same"] * 12, PENALTIES)[2] == PENALTIES[0]


def test_three_classes_have_a_column_of_scores_each():
    random = np.random.default_rng(3)
    labels = ["abc"[i % 3] for i in range(30)]
    features = (np.eye(3)[np.arange(30) % 3] + 0.1 * random.normal(size=(30, 3))).astype("float32")

    scores, classes, _ = linear_probe(features, labels, features, [str(i) for i in range(30)], (1e-3,))

    assert classes == ["a", "b", "c"] and scores.shape == (30, 3)
    assert (np.array(classes)[scores.argmax(axis=1)] == np.array(labels)).all()
