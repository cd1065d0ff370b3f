"""A linear classifier on frozen features, as the last layer of a network."""

import warnings
from collections.abc import Sequence

import numpy as np

from hdc_keras.finetuning.job import LinearHead

_FOLDS = 3
_ITERATIONS = 500
# The least deviation of a channel: as a share of the median of all channels, and for channels that are all constant.
_LEAST_SHARE, _LEAST = 1e-3, 1e-6


def fit_head(
    features: np.ndarray,
    labels: Sequence[str],
    groups: Sequence[str],
    classes: Sequence[str],
    penalties: Sequence[float],
) -> LinearHead:
    """Multinomial logistic regression on standardised features, with the standardisation folded into its weights.

    Classes count the same, however many videos they have. The L2 penalty is the one with the lowest cross-entropy on
    held-out thirds of the videos, in which classes count the same too; videos of one group stay together. If some class
    has fewer than three groups, it is the middle one.

    Args:
        features: (videos, channels) float32.
        labels: class of each video.
        groups: group of each video.
        classes: all classes, in the order of the scores. A class without videos gets the lowest scores.
        penalties: candidate penalties; scikit-learn's `C` is 1 / (penalty * number of videos).

    Returns:
        Weights for the features as they are.
    """
    features = features.astype(np.float64)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    # A channel that hardly varies says nothing, and would have weights that amplify rounding.
    deviation = np.maximum(deviation, _LEAST_SHARE * float(np.median(deviation)) + _LEAST)
    inputs, targets, group_ids = (features - mean) / deviation, np.array(labels), np.array(groups)
    best = sorted(penalties)[len(penalties) // 2]
    if len(penalties) > 1 and min(len(set(group_ids[targets == label])) for label in set(labels)) >= _FOLDS:
        losses = {penalty: _held_out_loss(inputs, targets, group_ids, penalty) for penalty in penalties}
        best = min(losses, key=lambda penalty: losses[penalty])
    fitted = _fit(inputs, targets, best)
    kernel, bias = fitted.coef_.T, fitted.intercept_
    if kernel.shape[1] == 1:  # two classes: scikit-learn has the weights of the second only
        kernel, bias = np.concatenate([-kernel, kernel], axis=1) / 2, np.concatenate([-bias, bias]) / 2
    kernel = kernel / deviation[:, None]
    bias = bias - mean @ kernel
    columns = {label: column for column, label in enumerate(fitted.classes_)}
    lowest = float(bias.min()) - 10.0
    nothing = np.zeros(len(kernel))
    return LinearHead(
        np.stack(
            [kernel[:, columns[name]] if name in columns else nothing for name in classes], axis=1, dtype="float32"
        ),
        np.array([bias[columns[name]] if name in columns else lowest for name in classes], "float32"),
    )


def balanced_weights(labels: np.ndarray) -> np.ndarray:
    """(videos,) weights with which classes count the same; their mean is 1."""
    names, rows, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (len(labels) / len(names) / counts)[rows]


def _fit(inputs: np.ndarray, targets: np.ndarray, penalty: float):  # type: ignore[no-untyped-def]
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (penalty * len(inputs)), max_iter=_ITERATIONS, class_weight="balanced")
    with warnings.catch_warnings():
        # With a weak penalty, convergence takes long and does not help: stopping early regularises enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(inputs, targets)


def _held_out_loss(inputs: np.ndarray, targets: np.ndarray, groups: np.ndarray, penalty: float) -> float:
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedGroupKFold

    losses = []
    for fitted, held_out in StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0).split(inputs, targets, groups):
        model = _fit(inputs[fitted], targets[fitted], penalty)
        known = np.isin(targets[held_out], model.classes_)
        scores, labels = model.predict_proba(inputs[held_out[known]]), targets[held_out[known]]
        losses.append(log_loss(labels, scores, labels=model.classes_, sample_weight=balanced_weights(labels)))
    return float(np.mean(losses))
