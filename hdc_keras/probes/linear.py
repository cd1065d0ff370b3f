"""Linear probe: logistic regression on frozen features."""

import warnings
from collections.abc import Sequence

import numpy as np

from hdc_keras.features.video_features import joined
from hdc_keras.probes.protocol import Judgement, Protocol, Question, judged_by_scores

_FOLDS = 3
_ITERATIONS = 200


def linear_probe(
    train: np.ndarray,
    train_labels: Sequence[str],
    test: np.ndarray,
    groups: Sequence[str],
    penalties: Sequence[float],
) -> tuple[np.ndarray, list[str], float]:
    """Multinomial logistic regression with an L2 penalty that is selected on the training videos.

    The selected penalty has the highest accuracy on a third of the training videos, after fitting on the other two
    thirds; videos of one group stay together. The final classifier is fitted on all training videos. If some class has
    fewer than three groups, the first penalty is used.

    Args:
        train: (training videos, channels) standardised features.
        train_labels: class of each training video.
        test: (test videos, channels) features, standardised in the same way.
        groups: group of each training video.
        penalties: candidate penalties; scikit-learn's `C` is 1 / (penalty * number of training videos).

    Returns:
        (test videos, classes) scores, higher is more likely; the classes; and the selected penalty.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    labels, group_ids = np.array(train_labels), np.array(groups)

    def fit(rows: np.ndarray, penalty: float) -> LogisticRegression:
        classifier = LogisticRegression(C=1 / (penalty * len(rows)), max_iter=_ITERATIONS, tol=1e-3)
        with warnings.catch_warnings():
            # With a weak penalty, convergence takes long and does not help: stopping early regularises enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return classifier.fit(train[rows], labels[rows])

    all_rows = np.arange(len(train))
    best = penalties[0]
    if len(penalties) > 1 and min(len(set(group_ids[labels == label])) for label in set(labels)) >= _FOLDS:
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
        fitted, held_out = next(folds.split(train, labels, group_ids))
        best = max(penalties, key=lambda penalty: fit(fitted, penalty).score(train[held_out], labels[held_out]))
    classifier = fit(all_rows, best)
    scores = classifier.decision_function(test)
    if scores.ndim == 1:  # for two classes, scikit-learn returns only the scores of the second
        scores = np.stack([-scores, scores], axis=1)
    return scores, classifier.classes_.tolist(), best


def _linear(question: Question) -> Judgement:
    train, test = joined(question.train, question.test, question.names)
    scores, classes, penalty = linear_probe(
        train, question.train_labels, test, question.train_groups, question.settings.linear_l2
    )
    judgement = judged_by_scores(scores, classes, question.test_labels)
    return Judgement(judgement.metrics | {"l2": penalty}, judgement.predicted)


LINEAR = Protocol(
    1,
    "our choice: multinomial logistic regression on standardised features, its L2 penalty chosen on training videos",
    _linear,
    lambda settings: {"linear_l2": list(settings.linear_l2)},
)
