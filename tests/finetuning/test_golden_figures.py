"""The figures of every fine-tuning recipe on fixed videos, to 1e-6.

A network without weights of its own, whose features are the mean colours of a clip, is trained with the recipe's
optimizer, schedule, weight decay and number of epochs, and scored as the recipe says. A slow reference does the same
from the definitions of PyTorch's optimizers and schedules, whose recipes these are. If a figure changes on purpose,
raise the version of the recipe, and enter both here: results of different versions are not compared.
"""

import math

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.finetuning.classifier import VideoClassifier
from hdc_keras.finetuning.optimizer import recipe_optimizer
from hdc_keras.finetuning.recipes import FINE_TUNING
from hdc_keras.finetuning.scoring import mean_over_views
from hdc_keras.probes.protocol import judged_by_scores

CLASSES = ["a", "b", "c", "d", "e", "f"]
STEPS_PER_EPOCH, BATCH, VIEWS = 3, 8, 5
NOT_AUGMENTED = {"size": 4, "crop_area": (1.0, 1.0), "flip": 0, "jitter": 0, "grey": 0, "blur": 0}
GOLDEN = {
    "finetune-vcop": (3, {"top1": 0.3125, "top5": 0.75, "mean_class_accuracy": 0.20833333, "mean score": 0.95538556}),
    "finetune-rspnet": (
        2,
        {"top1": 0.51041667, "top5": 0.98958333, "mean_class_accuracy": 0.42258987, "mean score": 2.30415369},
    ),
    "finetune-severe": (
        2,
        {"top1": 0.27083333, "top5": 0.71875, "mean_class_accuracy": 0.16666667, "mean score": 0.16458927},
    ),
}


def fixed_clips():
    """Clips of one colour: (videos, views, 1, 4, 4, 3) uint8 and the class of each video. Classes overlap."""
    random = np.random.RandomState(5)  # its numbers are the same in every version of numpy
    labels = np.array([int(6 * random.uniform() ** 1.5) for _ in range(120)])
    colours = random.uniform(40, 215, (6, 3))[labels][:, None] + 40 * random.normal(size=(120, VIEWS, 3))
    clips = np.clip(colours, 0, 255).astype(np.uint8)
    return np.broadcast_to(clips[:, :, None, None, None], (120, VIEWS, 1, 4, 4, 3)).copy(), labels


CLIPS, LABELS = fixed_clips()
TRAIN, TEST = np.arange(STEPS_PER_EPOCH * BATCH), np.arange(STEPS_PER_EPOCH * BATCH, 120)
START = np.random.RandomState(6).uniform(-0.5, 0.5, (4, 6))  # the last row holds the biases


def mean_colours():
    """A backbone without weights: four times the colours."""
    clips = keras.Input((None, None, None, 3))
    return keras.Model(clips, keras.layers.Rescaling(4.0)(clips))


def figures_of(name):
    """Figures after training with Keras: accuracies, and the mean score of the true class."""
    recipe = FINE_TUNING[name]
    model = VideoClassifier(mean_colours(), CLASSES, NOT_AUGMENTED, weight_decay=recipe.weight_decay)
    model.classifier.set_weights([START[:3].astype("float32"), START[3].astype("float32")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(recipe_optimizer(recipe, STEPS_PER_EPOCH), loss)
    for _ in range(recipe.epochs):
        for rows in TRAIN.reshape(STEPS_PER_EPOCH, BATCH):
            model.train_on_batch(CLIPS[rows, :1], LABELS[rows])
    views = [ops.convert_to_numpy(model(CLIPS[TEST, view : view + 1], training=False)) for view in range(VIEWS)]
    return figures_of_scores(mean_over_views(np.stack(views, axis=1), recipe.averaged))


def figures_of_scores(scores):
    labels = [CLASSES[label] for label in LABELS[TEST]]
    mean_score = float(np.mean([row[label] for row, label in zip(scores, LABELS[TEST], strict=True)]))
    return judged_by_scores(scores, CLASSES, labels).metrics | {"mean score": mean_score}


def rate_of(name, epoch, without):
    """Learning rate in an epoch, as in the published code."""
    if name == "finetune-vcop" or "schedule" in without:
        return {"finetune-vcop": 1e-3, "finetune-rspnet": 0.1, "finetune-severe": 1e-4}[name]
    if name == "finetune-rspnet":  # CosineAnnealingLR(T_max=30, eta_min=lr / 1000)
        return 1e-4 + (0.1 - 1e-4) * (1 + math.cos(math.pi * epoch / 30)) / 2
    return 1e-4 * 0.3 ** sum(epoch >= milestone for milestone in (6, 10, 14))  # MultiStepLR


def figures_of_reference(name, without=()):
    epochs = {"finetune-vcop": 150, "finetune-rspnet": 30, "finetune-severe": 16}[name]
    decay = {"finetune-vcop": 5e-4, "finetune-rspnet": 1e-4, "finetune-severe": 0.0}[name]
    weights, velocity, mean, square, step = START.copy(), 0.0, 0.0, 0.0, 0
    for epoch in range(epochs):
        rate = rate_of(name, epoch, without)
        for rows in TRAIN.reshape(STEPS_PER_EPOCH, BATCH):
            gradient = np.zeros_like(weights)
            for row in rows:
                inputs = inputs_of(CLIPS[row, 0])
                error = softmax(inputs @ weights)
                error[LABELS[row]] -= 1
                gradient += np.outer(inputs, error) / len(rows)
            step += 1
            if "weight decay" not in without:
                gradient += decay * weights
            if name == "finetune-severe":
                mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
                if "bias correction" in without:
                    weights = weights - rate * mean / (np.sqrt(square) + 1e-8)
                else:
                    corrected = np.sqrt(square / (1 - 0.999**step)) + 1e-8
                    weights = weights - rate * mean / (1 - 0.9**step) / corrected
            else:
                velocity = (0.0 if "momentum" in without else 0.9) * velocity + gradient
                weights = weights - rate * velocity
    averages_softmax = (name == "finetune-severe") != ("average of views" in without)
    scores = []
    for row in TEST:
        views = [inputs_of(clip) @ weights for clip in CLIPS[row]]
        scores.append(np.mean([softmax(view) if averages_softmax else view for view in views], axis=0))
    return figures_of_scores(np.array(scores))


def inputs_of(clip):
    return np.append(4 * clip.reshape(-1, 3).mean(axis=0) / 255, 1.0)


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("name", FINE_TUNING)
def test_figures_equal_the_slow_reference_and_the_stored_figures_of_this_version(name):
    version, golden = GOLDEN[name]
    reference = figures_of_reference(name)

    figures = figures_of(name)

    # Keras trains in float32: the score is equal to a few millionths of it.
    score, expected = figures.pop("mean score"), reference.pop("mean score")
    assert score == pytest.approx(expected, rel=2e-5)
    assert figures == pytest.approx(reference, abs=1e-6)
    assert {**reference, "mean score": expected} == pytest.approx(golden, abs=1e-6), "raise the version, if meant"
    assert version == FINE_TUNING[name].version, "enter the figures of the new version"


@pytest.mark.parametrize(
    "name, step",
    [
        ("finetune-vcop", "weight decay"),
        ("finetune-vcop", "momentum"),
        ("finetune-vcop", "average of views"),
        ("finetune-rspnet", "schedule"),
        ("finetune-rspnet", "weight decay"),
        ("finetune-rspnet", "momentum"),
        ("finetune-rspnet", "average of views"),
        ("finetune-severe", "schedule"),
        ("finetune-severe", "bias correction"),
        ("finetune-severe", "average of views"),
    ],
)
def test_each_step_of_a_recipe_changes_its_figures(name, step):
    changed = figures_of_reference(name, without=(step,))

    assert changed["mean score"] != pytest.approx(GOLDEN[name][1]["mean score"], rel=1e-4)
