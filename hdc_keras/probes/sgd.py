"""Linear classifiers on frozen features, trained with SGD as in CVRL or with Adam as in SEVERE."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hdc_keras.data.sampling import random_generator
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.protocol import Judgement, Protocol, Question, judged_by_scores

_CVRL: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 32.0,
    "batch_size": 1024,
    "schedule": "cosine",
    "momentum": 0.9,
    "epochs": 100,
}
_SEVERE: dict[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-2,
    "batch_size": 128,
    "drops": [4, 8],
    "drop_factor": 0.3,
    "epochs": 10,
}
# Part of the settings in a result: `compare` refuses results whose settings differ, so never reword it.
_FROZEN_VIEWS = "the same evenly spaced views in every epoch; the publication draws and augments a new clip each time"

# step -> learning rate.
Rate = Callable[[int], float]
# (step, gradients of kernel and bias) -> what to subtract from kernel and bias.
Update = Callable[[int, list[np.ndarray]], list[np.ndarray]]


def _cvrl(question: Question) -> Judgement:
    train, test = (_unit_views(features, question.names) for features in (question.train, question.test))
    clips = train.shape[0] * train.shape[1]
    batch_size, epochs = min(_CVRL["batch_size"], clips), _CVRL["epochs"]
    # If the set has fewer clips than a batch, the learning rate is scaled linearly.
    base_rate = _CVRL["learning_rate"] * batch_size / _CVRL["batch_size"]
    steps = epochs * -(-clips // batch_size)
    update = momentum_update(lambda step: base_rate * 0.5 * (1 + np.cos(np.pi * step / steps)), _CVRL["momentum"])
    return _softmax_regression(question, train, test, epochs, batch_size, update)


def _severe(question: Question) -> Judgement:
    train, test = (_views(features, question.names) for features in (question.train, question.test))
    steps_per_epoch = -(-train.shape[0] * train.shape[1] // _SEVERE["batch_size"])

    def rate(step: int) -> float:
        drops = sum(step >= epoch * steps_per_epoch for epoch in _SEVERE["drops"])
        return _SEVERE["learning_rate"] * _SEVERE["drop_factor"] ** drops

    update = adam_update(rate)
    return _softmax_regression(question, train, test, _SEVERE["epochs"], _SEVERE["batch_size"], update)


def momentum_update(rate: Rate, momentum: float) -> Update:
    """SGD with momentum, as in Keras."""
    velocities = [np.zeros(1), np.zeros(1)]

    def update(step: int, gradients: list[np.ndarray]) -> list[np.ndarray]:
        velocities[:] = [momentum * v + rate(step) * g for v, g in zip(velocities, gradients, strict=True)]
        return list(velocities)

    return update


def adam_update(rate: Rate) -> Update:
    """Adam (Kingma and Ba, arXiv 1412.6980) with beta_1 0.9, beta_2 0.999 and epsilon 1e-8."""
    means, squares = [np.zeros(1), np.zeros(1)], [np.zeros(1), np.zeros(1)]

    def update(step: int, gradients: list[np.ndarray]) -> list[np.ndarray]:
        means[:] = [0.9 * m + 0.1 * g for m, g in zip(means, gradients, strict=True)]
        squares[:] = [0.999 * v + 0.001 * g * g for v, g in zip(squares, gradients, strict=True)]
        scales = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        pairs = zip(means, squares, strict=True)
        return [rate(step) * (m / scales[0]) / (np.sqrt(v / scales[1]) + 1e-8) for m, v in pairs]

    return update


def _softmax_regression(
    question: Question, train: np.ndarray, test: np.ndarray, epochs: int, batch_size: int, update: Update
) -> Judgement:
    """Train a linear softmax classifier on single views; score a test video by its mean softmax over views.

    It is written in numpy, because there is one small classifier for each source, label column and seed: tracing a
    graph for each would take longer than training it.

    Args:
        question: labels and seed.
        train: (training videos, views, channels) features.
        test: (test videos, views, channels) features.
        epochs: passes over all training views.
        batch_size: training views per step.
        update: the optimizer.
    """
    generator = random_generator("softmax regression", question.seed)
    classes, targets = np.unique(question.train_labels, return_inverse=True)
    samples, labels = train.reshape(-1, train.shape[-1]), np.repeat(targets, train.shape[1])
    limit = np.sqrt(6 / (samples.shape[1] + len(classes)))  # Glorot and Bengio 2010
    kernel = generator.uniform(-limit, limit, (samples.shape[1], len(classes))).astype(np.float32)
    bias = np.zeros(len(classes), np.float32)
    batch_size, step = min(batch_size, len(samples)), 0
    for _ in range(epochs):
        order = generator.permutation(len(samples))
        for first in range(0, len(samples), batch_size):
            rows = order[first : first + batch_size]
            errors = _softmax(samples[rows] @ kernel + bias)
            errors[np.arange(len(rows)), labels[rows]] -= 1
            changes = update(step, [samples[rows].T @ errors / len(rows), errors.mean(axis=0)])
            kernel, bias = kernel - changes[0].astype(np.float32), bias - changes[1].astype(np.float32)
            step += 1
    scores = _softmax(test @ kernel + bias).mean(axis=1)
    return judged_by_scores(scores, classes.tolist(), question.test_labels)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _views(features: VideoFeatures, names: Sequence[str]) -> np.ndarray:
    """Several feature arrays concatenated along channels: (videos, views, channels)."""
    return np.concatenate([features.views[name] for name in names], axis=-1)


def _unit_views(features: VideoFeatures, names: Sequence[str]) -> np.ndarray:
    views = _views(features, names)
    return views / np.maximum(np.linalg.norm(views, axis=-1, keepdims=True), 1e-12)


LINEAR_CVRL = Protocol(
    1,
    "CVRL (Qian et al., CVPR 2021, arXiv 2008.03800): L2-normalised features, SGD, learning rate 32 for a batch of "
    "1,024; momentum, schedule and epochs are our reading of it",
    _cvrl,
    lambda settings: {**_CVRL, "training_clips": _FROZEN_VIEWS},
    needs_views=True,
    is_random=True,
)
LINEAR_SEVERE = Protocol(
    1,
    "SEVERE (Thoker et al., ECCV 2022, arXiv 2203.14221), as its code's configuration for UCF101 "
    "(112x112x32-fold1-linear)",
    _severe,
    lambda settings: {**_SEVERE, "training_clips": _FROZEN_VIEWS},
    needs_views=True,
    is_random=True,
)
