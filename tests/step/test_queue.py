"""A queue of negatives, and moving averages of weights. CI runs this file on every backend."""

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC
from hdc_keras.backbones.video_backbone import PIXEL_MEAN, PIXEL_STD, VideoBackbone, clip_input
from hdc_keras.config import ViewsConfig
from hdc_keras.errors import ConfigError
from hdc_keras.objective.losses import info_nce_with_queue
from hdc_keras.views.generator import ViewGenerator
from tests.plain_backbone import PlainConvolutions

# Videos of different colours, so that pooled features differ by more than rounding.
COLOURS, PIXELS = (np.random.default_rng(0).integers(0, 128, (6, 2, *shape, 3)) for shape in ((1, 1, 1), (4, 20, 20)))
WINDOWS = (COLOURS + PIXELS).astype(np.uint8)
VIEWS = {"size": 16}
LENGTHS = {"P2_spatial": 10, "P2_temporal": 16}
# At this temperature gradients are of the order of 1, so that float32 resolves differences of 1e-5.
CONTRAST = {
    "levels": {"spatial": ["P2"], "temporal": ["P2"]},
    "embedding_dim": 3,
    "hidden_dim": 8,
    "temperature": 1.0,
    "weighting": "uniform",
    "negatives": "queue",
    "queue_length": LENGTHS,
}
RATE, MOMENTUM, EMA = 0.05, 0.5, 0.8


@keras.saving.register_keras_serializable(package="tests")
class Linear(VideoBackbone):
    """One layer that multiplies each pixel by a matrix, so that pooled features are products of mean pixels."""

    def __init__(self, **kwargs):
        clips, x = clip_input((None, None, None, 3), "float32")
        levels = {}
        for level in ("P2", "P3", "P4", "P5"):
            x = keras.layers.Conv3D(4, 1, name=level)(x)
            levels[level] = x
        super().__init__(clips, levels, {"dtype": "float32"}, **kwargs)


def build(backbone=Linear, ema=EMA, contrast=CONTRAST, **options):
    keras.utils.set_random_seed(3)
    model = HDC(backbone(), views=VIEWS, contrast=contrast, seed=5, ema=ema)
    model.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM), **options)
    return model


def values_of(variables):
    return [np.array(ops.convert_to_numpy(variable), np.float64) for variable in variables]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Reference:
    """The same training in numpy, with gradients by finite differences."""

    def __init__(self, model):
        heads = [model.objective.heads[name] for name in LENGTHS]
        networks = [model.pyramid.trainable_variables, *([v for v in head.variables] for head in heads)]
        self.shapes = [[tuple(variable.shape) for variable in network] for network in networks]
        self.names = [[variable.path.split("/")[-2:] for variable in network] for network in networks]
        self.weights = np.concatenate([x.ravel() for network in networks for x in values_of(network)])
        self.average, self.velocity = self.weights.copy(), np.zeros_like(self.weights)
        self.queues = {name: values_of([model.objective.queues[name]])[0] for name in LENGTHS}
        self.updates = 0

    def parts(self, flat):
        """The matrix and bias of the backbone, and the variables of each head by name."""
        sizes = [int(np.prod(shape)) for network in self.shapes for shape in network]
        pieces = iter(np.split(flat, np.cumsum(sizes)[:-1]))
        (matrix, bias), *heads = [[next(pieces).reshape(shape) for shape in network] for network in self.shapes]
        names = [["/".join(name) for name in network] for network in self.names[1:]]
        return (
            matrix.reshape(3, 4),
            bias,
            [dict(zip(n, head, strict=True)) for n, head in zip(names, heads, strict=True)],
        )

    @staticmethod
    def embed(head, features, statistics=None):
        x = features @ head["hidden/kernel"]
        mean, variance = statistics or (x.mean(0), x.var(0))
        x = (x - mean) / np.sqrt(variance + 1e-5) * head["norm/gamma"] + head["norm/beta"]
        return unit(np.maximum(x, 0) @ head["projection/kernel"] + head["projection/bias"]), (mean, variance)

    def loss(self, flat, anchors, keys):
        matrix, bias, heads = self.parts(flat)
        total, statistics = 0.0, []
        for (name, key), head in zip(keys.items(), heads, strict=True):
            queries, found = self.embed(head, anchors @ matrix + bias)
            logits = np.concatenate([(queries * key).sum(-1, keepdims=True), queries @ self.queues[name].T], axis=1)
            total += np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
            statistics.append(found)
        return total, statistics

    def step(self, views):
        """Take a step on the mean pixels of the views, (views, batch, channels). Returns the loss."""
        decay = min(EMA, self.updates / (self.updates + 9))
        self.average = decay * self.average + (1 - decay) * self.weights
        self.updates += 1
        matrix, bias, heads = self.parts(self.average)
        keys = {}
        for name, head, pixels in zip(LENGTHS, heads, views[1:], strict=True):
            statistics = head["norm/moving_mean"], head["norm/moving_variance"]
            keys[name] = self.embed(head, pixels @ matrix + bias, statistics)[0]
        loss, statistics = self.loss(self.weights, views[0], keys)
        gradient = np.zeros_like(self.weights)
        for place in range(len(gradient)):
            change = np.zeros_like(gradient)
            change[place] = 1e-6
            above, below = (self.loss(self.weights + sign * change, views[0], keys)[0] for sign in (1, -1))
            gradient[place] = (above - below) / 2e-6
        self.velocity = MOMENTUM * self.velocity - RATE * gradient
        self.weights = self.weights + self.velocity
        _, _, heads = self.parts(self.weights)  # views of the vector
        for head, (mean, variance) in zip(heads, statistics, strict=True):
            for name, new in (("norm/moving_mean", mean), ("norm/moving_variance", variance)):
                head[name][...] = 0.9 * head[name] + 0.1 * new
        for name, key in keys.items():
            self.queues[name] = np.concatenate([key, self.queues[name]])[: LENGTHS[name]]
        return loss


@pytest.mark.parametrize("options", [{}, {"micro_batches": 3}], ids=str)
def test_20_steps_are_those_of_a_slow_reference(options):
    model = build(**options)
    reference = Reference(model)
    generator = ViewGenerator(ViewsConfig(**VIEWS), "decoupled", 5)

    for _ in range(20):
        views = generator.apply(WINDOWS, generator.draw(len(WINDOWS), WINDOWS.shape[2:5]))
        pixels = ops.convert_to_numpy(views).astype(np.float64).mean((2, 3, 4)).swapaxes(0, 1)
        expected = reference.step((pixels - PIXEL_MEAN) / PIXEL_STD)
        model.reset_metrics()
        assert model.train_on_batch(WINDOWS) == pytest.approx(expected, abs=1e-4)

    heads = [model.objective.heads[name] for name in LENGTHS]
    found = values_of([*model.pyramid.trainable_variables, *(v for head in heads for v in head.variables)])
    averages = values_of([*model.averages.averages[:2], *model.objective.averages.averages])
    for values, expected in ((found, reference.weights), (averages, reference.average)):
        np.testing.assert_allclose(np.concatenate([x.ravel() for x in values]), expected, atol=2e-4)
    assert np.abs(reference.weights - reference.average).max() > 1e-2
    for name, length in LENGTHS.items():
        queue = values_of([model.objective.queues[name]])[0]
        assert queue.shape == (length, 3)
        np.testing.assert_allclose(queue, reference.queues[name], atol=2e-4)


@pytest.mark.parametrize("options", [{}, {"jit_compile": keras.backend.backend() != "torch"}], ids=str)
def test_a_saved_model_goes_on_bit_for_bit(tmp_path, options):
    uninterrupted, first = build(PlainConvolutions, **options), build(PlainConvolutions, **options)
    for _ in range(4):
        uninterrupted.train_on_batch(WINDOWS)
    for _ in range(2):
        first.train_on_batch(WINDOWS)
    first.save(tmp_path / "model.keras")

    scope = {"PlainConvolutions": PlainConvolutions}
    resumed = keras.saving.load_model(tmp_path / "model.keras", custom_objects=scope)
    resumed.compile(resumed.optimizer, **options)
    for _ in range(2):
        resumed.train_on_batch(WINDOWS)

    assert resumed.ema == EMA and resumed.averages is not None and len(resumed.objective.queues) == 2
    for one, other in zip(uninterrupted.variables, resumed.variables, strict=True):
        if "metric" not in one.path and "means" not in one.path and "loss" not in one.path:  # of the epoch so far
            np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other), err_msg=one.path)


def test_averages_replace_the_weights_of_backbone_and_heads():
    model = build(ema=0.5, contrast={**CONTRAST, "negatives": "batch"})
    variables = [*model.pyramid.trainable_variables, *model.objective.head_variables]
    expected = values_of(variables)
    for update in range(4):
        decay = min(0.5, update / (update + 9))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, values_of(variables), strict=True)]
        model.train_on_batch(WINDOWS)

    model.use_averages()

    for found, average in zip(values_of(variables), expected, strict=True):
        np.testing.assert_allclose(found, average, atol=1e-6)


def test_without_averages_there_is_nothing_to_use():
    model = build(ema=None, contrast={**CONTRAST, "negatives": "batch"})

    assert model.ema is None and model.averages is None
    with pytest.raises(ConfigError, match="keeps no moving averages"):
        model.use_averages()


def test_a_queue_needs_averages_and_gets_those_of_moco():
    assert build(ema=None).ema == 0.999


def test_a_step_that_is_not_finite_moves_neither_queue_nor_averages():
    model = build()
    model.train_on_batch(WINDOWS)
    kept = [*model.averages.variables, *model.objective.non_trainable_variables]
    before = values_of(kept)

    model.optimizer.learning_rate = 0.0
    model.pyramid.trainable_variables[0].assign(model.pyramid.trainable_variables[0] * np.nan)
    model.train_on_batch(WINDOWS)

    assert model.step_record.count("skipped") == 1
    for one, other in zip(before, values_of(kept), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_loss_of_a_queue_is_that_of_moco():
    rng = np.random.default_rng(0)
    anchor, key, queue = (unit(rng.normal(size=(n, 5))).astype("float32") for n in (4, 4, 7))
    logits = np.concatenate([(anchor * key).sum(1, keepdims=True), anchor @ queue.T], axis=1) / 0.1

    found = info_nce_with_queue(*map(ops.convert_to_tensor, (anchor, key, queue)), 0.1)

    assert float(found.loss) == pytest.approx(np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0]), rel=1e-5)
    assert float(found.accuracy) == np.mean(logits.argmax(1) == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": {"temporal_negatives": ["reversed"]}}, "a queue excludes views.temporal_negatives"),
        ({"ema": 1.0}, r"HDC\(ema=...\): expected a number in \(0, 1\), such as 0.999. Received: 1.0"),
        (
            {"contrast": {**CONTRAST, "queue_length": {"P2_spatial": 4}}},
            "queue_length: expected a number for each of P2_",
        ),
    ],
)
def test_what_a_queue_excludes_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HDC(**{"backbone": Linear(), "views": VIEWS, "contrast": CONTRAST, **arguments})


def test_plain_micro_batches_are_refused():
    with pytest.raises(ValueError, match="a queue of negatives needs `cached` micro-batches"):
        build(micro_batches=2, accumulate="plain")
