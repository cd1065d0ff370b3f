"""Nearest training videos: kNN classification and retrieval."""

from hdc_keras.evaluation.features import joined
from hdc_keras.evaluation.protocols.protocol import Judgement, Protocol, Question, judged_by_scores
from hdc_keras.evaluation.retrieval import cosine_similarity, knn_votes, nearest, recall_at

_NEIGHBOURS_NAMED = 10


def _knn(question: Question) -> Judgement:
    train, test = joined(question.train, question.test, question.names)
    settings = question.settings
    votes, classes = knn_votes(
        cosine_similarity(test, train), question.train_labels, settings.knn_neighbours, settings.knn_temperature
    )
    return judged_by_scores(votes, classes, question.test_labels)


def _retrieval(question: Question) -> Judgement:
    train, test = joined(question.train, question.test, question.names)
    similarity = cosine_similarity(test, train)
    recalls = recall_at(similarity, question.test_labels, question.train_labels, question.settings.recall_at)
    found = nearest(similarity, _NEIGHBOURS_NAMED)
    return Judgement(
        {f"R@{k}": value for k, value in recalls.items()},
        [question.train_labels[row[0]] for row in found],
        [[question.train.records[place].video_id for place in row] for row in found],
    )


KNN = Protocol(
    1,
    "weighted vote of Wu et al., CVPR 2018 (arXiv 1805.01978) on standardised features of a video's mean view",
    _knn,
    lambda settings: {"neighbours": settings.knn_neighbours, "temperature": settings.knn_temperature},
)
RETRIEVAL = Protocol(
    1,
    "video retrieval as in VCOP (Xu et al., CVPR 2019): test videos query training videos by cosine, a hit if any of "
    "the k nearest shares the class; standardised features of a video's mean view",
    _retrieval,
    lambda settings: {"recall_at": list(settings.recall_at)},
)
