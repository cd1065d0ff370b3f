"""The step trains with any `Objective`, here one with a queue of past embeddings as negatives, as in MoCo."""

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC
from hdc_keras.objective.heads import ProjectionHead
from hdc_keras.objective.objective import Objective, ObjectiveOutput
from tests.plain_backbone import PlainConvolutions

WINDOWS = np.random.default_rng(0).integers(0, 256, (4, 2, 4, 20, 20, 3), np.uint8)
QUEUE = 8


class QueueObjective(Objective):
    """InfoNCE at one level. The negatives come from a queue, to which every step adds its positives."""

    def __init__(self, width, **kwargs):
        super().__init__(["queue_loss"], **kwargs)
        self.head = ProjectionHead(8, name="head")
        self.head.build((None, width))
        self.queue = self.add_weight(shape=(QUEUE, 8), initializer="random_normal", trainable=False, name="queue")
        self.built = True

    def embed(self, features, training=None):
        views, batch, width = ops.shape(features["P5"])
        rows = ops.reshape(features["P5"], (views * batch, width))
        return {"embeddings": ops.reshape(self.head(rows, training=training), (views, batch, 8))}

    def loss_of(self, outputs, training=None):
        anchor, positive = outputs["embeddings"][0], ops.stop_gradient(outputs["embeddings"][1])
        candidates = ops.concatenate([positive, self.queue.value])
        logits = ops.matmul(anchor, ops.transpose(candidates))
        loss = ops.mean(ops.logsumexp(logits, axis=1) - ops.sum(anchor * positive, axis=1))
        if training:
            self.queue.assign(ops.concatenate([positive, self.queue.value])[:QUEUE])
        return ObjectiveOutput(loss, ops.stack([loss]))


class QueueHDC(HDC):
    def make_objective(self):
        return QueueObjective(self.feature_widths["P5"], name="objective")


def trained(windows, levels=("P5",), **options):
    keras.utils.set_random_seed(3)
    contrast = {"task": "coupled", "levels": {"coupled": levels}}
    model = QueueHDC(PlainConvolutions(), views={"size": 16}, contrast=contrast, seed=5)
    model.compile(keras.optimizers.SGD(0.1), **options)
    before = [ops.convert_to_numpy(v).copy() for v in (*model.trainable_variables, model.objective.queue)]
    logs = model.train_on_batch(windows, return_dict=True)
    after = [ops.convert_to_numpy(v) for v in (*model.trainable_variables, model.objective.queue)]
    return model, before, after, logs


def test_another_objective_trains_keeps_its_state_and_is_logged():
    model, before, after, logs = trained(WINDOWS)

    assert all(np.abs(new - old).max() > 0 for old, new in zip(before, after, strict=True))
    np.testing.assert_array_equal(after[-1][4:], before[-1][:4])  # the queue has moved on by a batch
    assert float(logs["queue_loss"]) == float(logs["loss"]) > 0
    assert model.step_record.count("steps") == 1


def test_an_objective_without_weights_or_without_a_method():
    class Small(Objective):
        def embed(self, features, training=None):
            return features

    class SmallHDC(HDC):
        def make_objective(self):
            return Small(["small"], name="objective")

    model = SmallHDC(PlainConvolutions(), views={"size": 16})
    model.compile("sgd")
    with pytest.raises(NotImplementedError, match="Small must implement `loss_of`"):
        model.train_on_batch(WINDOWS)
    Small.loss_of = lambda self, outputs, training=None: ObjectiveOutput(
        sum(ops.mean(features**2) for features in outputs.values()), ops.ones((1,))
    )
    assert float(model.train_on_batch(WINDOWS, return_dict=True)["small"]) == 1


def test_a_non_finite_step_does_not_change_the_state_of_another_objective():
    bad = WINDOWS.astype("float32")
    bad[3, 0, 1, 4, 4] = np.nan
    model, before, after, _ = trained(bad)

    np.testing.assert_array_equal(after[-1], before[-1])
    assert model.step_record.first_non_finite() == "step 1: queue_loss"


def test_cached_micro_batches_add_the_whole_batch_to_the_queue_once():
    whole, pieces = (trained(WINDOWS, micro_batches=count) for count in (1, 2))

    np.testing.assert_allclose(pieces[2][-1], whole[2][-1], atol=1e-5)


def test_a_level_that_the_objective_ignores_changes_nothing():
    one, two = (trained(WINDOWS, levels) for levels in (["P5"], ["P2", "P5"]))

    for alone, with_another in zip(one[2], two[2], strict=True):
        np.testing.assert_allclose(alone, with_another, atol=1e-6)
