"""Linear classifiers on frozen features, trained with SGD as in CVRL or with Adam as in SEVERE."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hdc_keras.data.sampling import random_generator
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.protocol import Judgement, Protocol, Question, judged_by_scores
from hdc_keras.probes.publication import BEST_ON_TEST, PIXELS_OF_IMAGENET, Publication

_CVRL: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 32.0,
    "batch_size": 1024,
    "schedule": "cosine",
    "momentum": 0.9,
    "epochs": 100,
    "warmup_epochs": 5,
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
_NOT_AUGMENTED = "the evenly spaced views of evaluation, not augmented, the same in every epoch"
_CENTRAL_CROP = "central crop of the frame as it was decoded"

# (generator, shape) -> (channels, classes) initial weights.
Initialiser = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
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
    steps_per_epoch = clips // batch_size
    rate = warmed_up_cosine(base_rate, _CVRL["warmup_epochs"] * steps_per_epoch, epochs * steps_per_epoch)
    update = momentum_update(rate, _CVRL["momentum"])
    return _softmax_regression(question, train, test, epochs, batch_size, update, glorot_uniform)


def _severe(question: Question) -> Judgement:
    train, test = (_views(features, question.names) for features in (question.train, question.test))
    clips = train.shape[0] * train.shape[1]
    batch_size, epochs = min(_SEVERE["batch_size"], clips), _SEVERE["epochs"]
    steps_per_epoch = clips // batch_size

    def rate(step: int) -> float:
        drops = sum(step >= epoch * steps_per_epoch for epoch in _SEVERE["drops"])
        return _SEVERE["learning_rate"] * _SEVERE["drop_factor"] ** drops

    return _softmax_regression(question, train, test, epochs, batch_size, adam_update(rate), small_normal)


def warmed_up_cosine(peak: float, warmup_steps: int, steps: int) -> Rate:
    """A cosine from `peak` to 0 over all steps. During the warm-up, a line from 0 to the cosine's value at its end."""

    def cosine(step: int) -> float:
        return peak * 0.5 * (1 + float(np.cos(np.pi * step / steps)))

    return lambda step: cosine(warmup_steps) * step / warmup_steps if step < warmup_steps else cosine(step)


def glorot_uniform(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Initial kernel (channels, classes), as in Keras (Glorot and Bengio 2010)."""
    limit = np.sqrt(6 / sum(shape))
    return generator.uniform(-limit, limit, shape)


def small_normal(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Initial kernel (channels, classes) of SEVERE's code, with a deviation of 0.01."""
    return generator.normal(0.0, 0.01, shape)


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
    question: Question,
    train: np.ndarray,
    test: np.ndarray,
    epochs: int,
    batch_size: int,
    update: Update,
    initial_kernel: Initialiser,
) -> Judgement:
    """Train a linear softmax classifier on single views; score a test video by its mean softmax over views.

    It is written in numpy, because there is one small classifier for each source, label column and seed: tracing a
    graph for each would take longer than training it. It trains in float64: at CVRL's learning rate of 32, training
    amplifies rounding errors, and the figures of float32 would depend on the machine.

    Args:
        question: labels and seed.
        train: (training videos, views, channels) features.
        test: (test videos, views, channels) features.
        epochs: passes over all training views. A last batch that is not full is dropped, as in both publications.
        batch_size: training views per step, at most as many as there are.
        update: the optimizer.
        initial_kernel: draws the initial weights.
    """
    generator = random_generator("softmax regression", question.seed)
    classes, targets = np.unique(question.train_labels, return_inverse=True)
    samples, labels = train.reshape(-1, train.shape[-1]), np.repeat(targets, train.shape[1])
    kernel, bias = initial_kernel(generator, (samples.shape[1], len(classes))), np.zeros(len(classes))
    step = 0
    for _ in range(epochs):
        order = generator.permutation(len(samples))
        for first in range(0, len(samples) - batch_size + 1, batch_size):
            rows = order[first : first + batch_size]
            batch = samples[rows].astype(np.float64)
            errors = _softmax(batch @ kernel + bias)
            errors[np.arange(len(rows)), labels[rows]] -= 1
            changes = update(step, [batch.T @ errors / len(rows), errors.mean(axis=0)])
            kernel, bias = kernel - changes[0], bias - changes[1]
            step += 1
    scores = _softmax(test @ kernel.astype(np.float32) + bias).mean(axis=1)
    return judged_by_scores(scores, classes.tolist(), question.test_labels)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _views(features: VideoFeatures, names: Sequence[str]) -> np.ndarray:
    """Several feature arrays concatenated along channels: (videos, views, channels)."""
    return np.concatenate([features.views[name] for name in names], axis=-1)


def _unit_views(features: VideoFeatures, names: Sequence[str]) -> np.ndarray:
    views = _views(features, names)
    lengths = np.sqrt(np.einsum("vnc,vnc->vn", views, views, dtype=np.float64))[..., None]
    return views / np.maximum(lengths, 1e-12).astype(np.float32)


LINEAR_CVRL = Protocol(
    2,  # 1 joined all levels, had no warm-up, and kept a last batch that was not full
    "CVRL (Qian et al., CVPR 2021, arXiv 2008.03800), as its code, cvrl_linear_eval_k600.yaml",
    _cvrl,
    lambda settings: {**_CVRL, "training_clips": _FROZEN_VIEWS},
    Publication(
        {"frames": 32, "stride": 2, "size": 224, "views": "10x3"},
        {
            "training clips": ("a new one of each video in every epoch, cropped and flipped at random", _NOT_AUGMENTED),
            "test crops": ("256 x 256 pixels, larger than in training", "of the size in training"),
            "batch size of small sets": ("1,024", "the whole set, with a learning rate that is scaled with it"),
        },
    ),
    uses_last_level=True,
    needs_views=True,
    is_random=True,
)
LINEAR_SEVERE = Protocol(
    2,  # 1 joined all levels, drew Glorot's initial weights, and kept a last batch that was not full
    "SEVERE (Thoker et al., ECCV 2022, arXiv 2203.14221), as its code's configuration for UCF101 "
    "(112x112x32-fold1-linear)",
    _severe,
    lambda settings: {**_SEVERE, "training_clips": _FROZEN_VIEWS},
    Publication(
        {"frames": 16, "stride": 2, "size": 112, "views": "10x1"},
        {
            "training clips": (
                "10 new ones of each video in every epoch, with crops, flips and colours",
                _NOT_AUGMENTED,
            ),
            "batch norm in training": ("statistics of the batch, which also move its averages", "frozen averages"),
            "epoch that is tested": BEST_ON_TEST,
            "frame rate": ("16 per second", "that of the video, divided by the stride"),
            "test crop": ("central 112 x 112 pixels after the shorter side became 128", _CENTRAL_CROP),
            "pixels": PIXELS_OF_IMAGENET,
        },
    ),
    uses_last_level=True,
    needs_views=True,
    is_random=True,
)
