"""Linear probe: what a linear classifier can read from frozen features."""

from collections.abc import Sequence

import numpy as np


def linear_probe(
    train: np.ndarray,
    train_labels: Sequence[str],
    test: np.ndarray,
    groups: Sequence[str],
    penalties: Sequence[float],
) -> tuple[np.ndarray, float]:
    """Multinomial logistic regression with an L2 penalty that is chosen on the training videos alone.

    The choice is by cross-validation (3 folds, or as many as the classes allow) that divides no group.

    Args:
        train: (training videos, channels) standardised features.
        train_labels: their classes.
        test: (test videos, channels).
        groups: group of each training video.
        penalties: candidates for the penalty; scikit-learn's `C` is 1 / (penalty * training videos).

    Returns:
        Predicted class of every test video, and the penalty chosen.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score

    labels, group_ids = np.array(train_labels), np.array(groups)

    def classifier(penalty: float) -> LogisticRegression:
        return LogisticRegression(C=1 / (penalty * len(train)), max_iter=300, tol=1e-3)

    folds = min(3, *(len(set(group_ids[labels == label])) for label in set(labels)))
    scores = [0.0] * len(penalties)
    if folds > 1 and len(penalties) > 1:
        splitter = StratifiedGroupKFold(folds)
        scores = [
            cross_val_score(classifier(p), train, labels, groups=group_ids, cv=splitter).mean() for p in penalties
        ]
    best = penalties[int(np.argmax(scores))]
    return classifier(best).fit(train, labels).predict(test), best
