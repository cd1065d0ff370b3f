import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC, R3D
from hdc_keras.errors import ConfigError
from hdc_keras.objective.contrast import ContrastObjective
from hdc_keras.objective.heads import unit_length
from hdc_keras.objective.losses import info_nce
from tests.objective.test_losses import slow_info_nce

RNG = np.random.default_rng(0)
WINDOWS = RNG.integers(0, 255, (6, 2, 4, 20, 20, 3), dtype=np.uint8)
EVERY_LEVEL = {task: ["P2", "P3", "P4", "P5"] for task in ("spatial", "temporal", "coupled")}
ALL_NEGATIVES = ["shifted", "reversed", "shuffled", "frozen"]


def both(*levels):
    return {"spatial": levels, "temporal": levels}


def small_model(views=None, contrast=None, **options):
    keras.utils.set_random_seed(0)
    backbone = R3D([4, 4, 6, 8], [1, 1, 1, 1], name="small")
    contrast = {"embedding_dim": 8, "levels": EVERY_LEVEL, **(contrast or {})}
    model = HDC(backbone, {"size": 16, **(views or {})}, contrast, **options)
    model.compile(keras.optimizers.SGD(0.05))
    return model


def test_outputs_are_named_by_level_and_task():
    outputs = small_model()(WINDOWS)

    assert {name for name in outputs if name.startswith("P3")} == {"P3_features", "P3_spatial", "P3_temporal"}
    assert outputs["P5_temporal"].shape == (3, 6, 8) and outputs["P5_features"].shape == (3, 6, 8)
    np.testing.assert_allclose(np.linalg.norm(ops.convert_to_numpy(outputs["P2_spatial"]), axis=-1), 1, atol=1e-5)


def test_the_loss_is_the_weighted_sum_over_levels_and_tasks():
    model = small_model(
        {"temporal_negatives": ["reversed"]},
        {
            "weighting": "fixed",
            "levels": both("P3", "P5"),
            "fixed_weights": {"P3": 0.5, "P5": 2.0},
            "temporal_weight": 0.7,
            "temporal_negative_weight": 3.0,
        },
    )
    outputs = model(WINDOWS, training=True)
    order = model.view_generator.view_names
    anchor, spatial, temporal, negative = (
        order.index(n) for n in ("anchor", "spatial_positive", "temporal_positive", "reversed")
    )
    expected = 0.0
    for level, weight in (("P3", 0.5), ("P5", 2.0)):
        s, t = outputs[f"{level}_spatial"], outputs[f"{level}_temporal"]
        expected += weight * float(info_nce(s[anchor], s[spatial], 0.1).loss)
        expected += 0.7 * weight * float(info_nce(t[anchor], t[temporal], 0.1, t[negative][None], 3.0).loss)

    assert float(model.compute_loss(y_pred=outputs)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("task", "weighting"),
    [(task, "measured") for task in ("decoupled", "coupled", "spatial", "temporal")]
    + [("decoupled", "uniform"), ("decoupled", "fixed")],
)
def test_every_ablation_trains_all_its_weights(task, weighting):
    model = small_model({"temporal_negatives": ALL_NEGATIVES}, {"task": task, "weighting": weighting})
    before = [np.array(ops.convert_to_numpy(v)) for v in model.trainable_variables]

    history = model.fit(WINDOWS, batch_size=6, epochs=2, verbose=0)

    after = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert all(np.isfinite(history.history["loss"]))
    unmoved = [v.path for v, a, b in zip(model.trainable_variables, before, after, strict=True) if np.array_equal(a, b)]
    assert not unmoved


def test_stages_above_the_deepest_level_are_left_out():
    model = small_model(contrast={"levels": both("P3")})

    assert not any("stage4" in v.path or "stage5" in v.path for v in model.pyramid.trainable_variables)
    assert np.isfinite(model.fit(WINDOWS, batch_size=6, verbose=0).history["loss"][0])


def test_tasks_may_have_different_levels():
    model = small_model(contrast={"levels": {"spatial": ["P2", "P3"], "temporal": ["P5"]}})
    outputs = model(WINDOWS, training=True)
    model.compute_loss(y_pred=outputs)
    weights = ops.convert_to_numpy(model.objective.invariance_weights.loss_weights())

    assert sorted(model.objective.heads) == ["P2_spatial", "P3_spatial", "P5_temporal"]
    assert {name for name in outputs if name.endswith("al")} == set(model.objective.heads)
    np.testing.assert_array_equal(weights > 0, [[True, False], [True, False], [False, True]])
    np.testing.assert_allclose(weights.sum(axis=0), [2.0, 1.0], atol=1e-6)
    assert np.isfinite(model.fit(WINDOWS, batch_size=6, verbose=0).history["loss"][0])


def test_metrics_are_means_over_the_epoch():
    model = small_model(contrast={"levels": both("P5")})
    history = model.fit(WINDOWS, batch_size=3, verbose=0).history

    assert {"loss", "P5_spatial_loss", "P5_temporal_accuracy", "P5_spatial_weight", "P5_temporal_invariance"} <= set(
        history
    )
    assert history["loss"][0] == pytest.approx(history["P5_spatial_loss"][0] + history["P5_temporal_loss"][0], rel=1e-4)


def test_saving_keeps_weights_optimizer_invariance_and_randomness(tmp_path):
    model = small_model({"temporal_negatives": ["shifted"]}, seed=7)
    model.fit(WINDOWS, batch_size=6, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")

    assert loaded.get_config() == model.get_config()
    assert int(loaded.optimizer.iterations) == 2
    np.testing.assert_array_equal(
        ops.convert_to_numpy(loaded.objective.invariance_weights.average),
        ops.convert_to_numpy(model.objective.invariance_weights.average),
    )
    for again in (model, loaded):
        again.fit(WINDOWS, batch_size=6, epochs=2, verbose=0, shuffle=False)
    for one, other in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-5, err_msg=one.path)


class Free(keras.Model):
    """One variable and a loss computed from it.

    On any backend, one step of SGD with learning rate 1 then subtracts the gradient from the variable.
    """

    def __init__(self, values, loss_of):
        super().__init__()
        self.loss_of = loss_of
        self.free = self.add_weight(
            shape=values.shape, initializer=lambda shape, dtype=None: ops.convert_to_tensor(values)
        )

    def call(self, x):
        return x

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.loss_of(self.free)


def gradient(values, loss_of):
    model = Free(np.float32(values), loss_of)
    model.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    model.train_on_batch(np.zeros((1, 1), "float32"))
    return values - ops.convert_to_numpy(model.free)


def test_the_gradient_of_the_loss_equals_finite_differences_of_a_slow_reference():
    model = small_model(
        {"temporal_negatives": ["reversed"]},
        {"levels": both("P3", "P5"), "weighting": "fixed", "temporal_weight": 0.7, "temporal_negative_weight": 3.0},
    )
    weights = {"P3": 0.5, "P5": 1.0}
    free = np.random.default_rng(1).normal(size=(2, 2, 4, 6, 8))  # levels, tasks, views, videos, dimensions

    def loss_of(variable):
        unit = unit_length(variable)
        outputs = {f"{level}_features": variable[row, 0] for row, level in enumerate(weights)}
        for row, level in enumerate(weights):
            outputs |= {f"{level}_{task}": unit[row, column] for column, task in enumerate(model.objective.tasks)}
        return model.compute_loss(y_pred=outputs, training=False)

    def slow(values):
        unit = values / np.linalg.norm(values, axis=-1, keepdims=True)
        total = 0.0
        for (spatial, temporal), weight in zip(unit, weights.values(), strict=True):
            total += weight * slow_info_nce(spatial[0], spatial[1], 0.1)
            total += 0.7 * weight * slow_info_nce(temporal[0], temporal[2], 0.1, temporal[3:4], 3.0)
        return total

    assert model.view_generator.view_names == ("anchor", "spatial_positive", "temporal_positive", "reversed")
    computed = gradient(free, loss_of)
    places = [tuple(place) for place in np.random.default_rng(2).integers(0, free.shape, (40, 5))]
    for place in places:
        step = np.zeros_like(free)
        step[place] = 1e-5
        finite = (slow(free + step) - slow(free - step)) / 2e-5
        assert computed[place] == pytest.approx(finite, abs=1e-4), place
    assert np.abs([computed[place] for place in places]).max() > 0.05


def test_a_step_follows_the_gradient_of_the_whole_model():
    """One step of SGD shows the gradient through views, backbone, heads and losses. Its squared norm must equal the
    slope of the loss along it, measured by central differences. With 16 channels and videos that differ, the loss is
    smooth enough for that."""
    keras.utils.set_random_seed(0)
    contrast = {"embedding_dim": 8, "levels": EVERY_LEVEL, "weighting": "fixed"}
    model = HDC(R3D([16, 16, 16, 16], [1, 1, 1, 1]), {"size": 16, "fade_static": 0.0}, contrast)
    model.compile(keras.optimizers.SGD(1.0))
    blocks = np.random.default_rng(0).integers(0, 255, (6, 2, 4, 4, 4, 3))
    windows = np.kron(blocks, np.ones((1, 1, 1, 5, 5, 1))).astype("uint8")
    start = [np.array(weight) for weight in model.get_weights()]
    draws = ops.convert_to_numpy(model.view_generator.seed_generator.state)
    places = {variable.path: place for place, variable in enumerate(model.weights)}
    model.train_on_batch(windows)
    moved = model.get_weights()
    gradient_at = {place: start[place] - moved[place] for v in model.trainable_variables for place in [places[v.path]]}
    squared_norm = sum(float((np.float64(part) ** 2).sum()) for part in gradient_at.values())

    def loss_at(length):
        weights = [w + np.float32(length) * gradient_at[i] if i in gradient_at else w for i, w in enumerate(start)]
        model.set_weights(weights)
        model.view_generator.seed_generator.state.assign(draws)
        return float(ops.convert_to_numpy(model.compute_loss(y_pred=model(windows, training=True), training=False)))

    length = 1e-4 / squared_norm**0.5
    slope = (loss_at(length) - loss_at(-length)) / (2 * length)
    assert slope == pytest.approx(squared_norm, rel=0.02)


def test_invariance_weights_follow_a_slow_reference_over_fifty_steps_of_the_model():
    model = small_model(contrast={"momentum": 0.9, "gamma": 2.0, "weight_range": [0.2, 3.0]})
    average = None
    for _ in range(50):
        outputs = model(WINDOWS, training=True)
        model.compute_loss(y_pred=outputs)
        measured = np.zeros((4, 2))
        for row, level in enumerate(("P2", "P3", "P4", "P5")):
            views = np.float64(ops.convert_to_numpy(outputs[f"{level}_features"]))
            anchor, spatial, temporal = views / np.maximum(np.linalg.norm(views, axis=-1, keepdims=True), 1e-6)
            for column, positive in enumerate((spatial, temporal)):
                cosines = anchor @ positive.T
                other_cosines = cosines[~np.eye(6, dtype=bool)]
                measured[row, column] = np.diag(cosines).mean() - other_cosines.mean()
        average = measured if average is None else 0.9 * average + 0.1 * measured
        powered = np.maximum(average, 1e-3) ** 2
        clipped = np.clip(powered / powered.mean(axis=0), 0.2, 3.0)
        weights = ops.convert_to_numpy(model.objective.invariance_weights.loss_weights())
        np.testing.assert_allclose(weights, clipped / clipped.mean(axis=0), rtol=2e-3)
    assert np.ptp(weights) > 0.1


def test_restored_invariance_weights_continue_from_the_saved_average(tmp_path):
    model = small_model(contrast={"momentum": 0.9})
    model.fit(WINDOWS, batch_size=6, epochs=3, verbose=0)
    weights = ops.convert_to_numpy(model.objective.invariance_weights.loss_weights())
    model.save_weights(tmp_path / "model.weights.h5")
    restored = small_model(contrast={"momentum": 0.9})
    restored.load_weights(tmp_path / "model.weights.h5")

    assert np.ptp(weights) > 1e-3
    np.testing.assert_array_equal(ops.convert_to_numpy(restored.objective.invariance_weights.loss_weights()), weights)
    before = ops.convert_to_numpy(restored.objective.invariance_weights.average)
    measured = np.full((4, 2), 0.5, "float32")
    restored.objective.invariance_weights.update(measured)
    np.testing.assert_allclose(
        ops.convert_to_numpy(restored.objective.invariance_weights.average), 0.9 * before + 0.1 * measured, rtol=1e-5
    )


def test_steps_after_the_first_are_not_traced_again(monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch runs eagerly: there is no trace")
    traced = []
    embed = ContrastObjective.embed
    monkeypatch.setattr(
        ContrastObjective, "embed", lambda self, *args, **kwargs: traced.append(1) or embed(self, *args, **kwargs)
    )
    model = small_model({"temporal_negatives": ALL_NEGATIVES, "fade_static": 0.8, "own_colour": 0.5})
    model.fit(WINDOWS[:2], batch_size=2, verbose=0)
    first = len(traced)
    model.fit(WINDOWS, batch_size=2, epochs=4, verbose=0)

    assert first >= 1 and len(traced) == first


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"unknown key `weigthing`. Did you mean `weighting`\?"):
        small_model(contrast={"weigthing": "uniform"})


@pytest.mark.parametrize("backbone", ["r3d18", R3D, None])
def test_what_is_not_a_backbone_is_refused(backbone):
    with pytest.raises(ConfigError, match=r"HDC\(backbone=\.\.\.\): expected a VideoBackbone.* Received: "):
        HDC(backbone)


@pytest.mark.parametrize(
    "windows", [WINDOWS[:, 0], WINDOWS[:, :1], WINDOWS[..., :1], np.moveaxis(WINDOWS, -1, 2), WINDOWS[:, [0, 1, 1]]]
)
def test_windows_of_another_shape_are_refused(windows):
    with pytest.raises(ValueError, match=r"expected windows of shape \(batch, 2, time, height, width, 3\)"):
        small_model().fit(windows, batch_size=3, verbose=0)


class ArrayBatches(keras.utils.PyDataset):
    """Two batches of three videos; `labels` are returned with them if given."""

    def __init__(self, windows, labels=None):
        super().__init__()
        self.windows, self.labels = windows, labels

    def __len__(self):
        return 2

    def __getitem__(self, number):
        windows = self.windows[3 * number :][:3]
        return windows if self.labels is None else (windows, self.labels[:3])


def tf_batches(windows, batch_size=3):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(windows).batch(batch_size)


WINDOWS_SHAPE = r"expected windows of shape \(batch, 2, time, height, width, 3\) with pixels in 0\.\.255"
FEEDS = {
    "array": lambda model, windows: model.fit(windows, batch_size=3, verbose=0),
    "tensor": lambda model, windows: model.fit(ops.convert_to_tensor(windows), batch_size=3, verbose=0),
    "one batch": lambda model, windows: model.train_on_batch(windows),
    "PyDataset": lambda model, windows: model.fit(ArrayBatches(windows), verbose=0),
    "tf.data": lambda model, windows: model.fit(tf_batches(windows), verbose=0),
}


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(
    ("change", "received"),
    [
        (lambda x: x / 255.0, r"pixels in 0\.\.0\.99\d+\. Multiply them by 255"),
        (lambda x: x / 127.5 - 1.0, r"pixels in -1\.\.0\.99\d+\."),
        (lambda x: x * 257.0, r"pixels in 0\.\.6\.5\d+e\+04\."),
    ],
)
def test_windows_of_another_range_are_refused_before_the_first_step(feed, change, received):
    model = small_model()

    with pytest.raises(ValueError, match=f"{WINDOWS_SHAPE}. Received: {received}"):
        FEEDS[feed](model, np.float32(change(WINDOWS)))
    assert model.steps_taken == 0


@pytest.mark.parametrize("feed", FEEDS)
def test_float_windows_in_0_to_255_are_trained_like_uint8(feed):
    one, other = small_model(), small_model()
    shuffled = {"array", "tensor", "PyDataset"} & {feed}
    windows = WINDOWS[:1].repeat(6, axis=0) if shuffled else WINDOWS

    FEEDS[feed](one, windows)
    FEEDS[feed](other, windows.astype("float32"))

    assert one.steps_taken == other.steps_taken == (1 if feed == "one batch" else 2)
    for mine, theirs in zip(one.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(mine), ops.convert_to_numpy(theirs), atol=1e-5)


@pytest.mark.parametrize(
    "fit",
    [
        lambda model: model.fit(WINDOWS, np.arange(6), batch_size=3, verbose=0),
        lambda model: model.fit(ArrayBatches(WINDOWS, np.arange(6)), verbose=0),
        lambda model: model.fit(tf_batches((WINDOWS, np.arange(6))), verbose=0),
        lambda model: model.train_on_batch(WINDOWS, np.arange(6)),
        lambda model: model.fit(WINDOWS, batch_size=3, sample_weight=np.ones(6), verbose=0),
    ],
)
def test_labels_and_sample_weights_are_refused(fit):
    with pytest.raises(ValueError, match=r"expected only windows of .* Received also: (labels|sample weights)\."):
        fit(small_model())


@pytest.mark.parametrize(
    ("fit", "received"),
    [
        (lambda model: model.fit(WINDOWS[:1], verbose=0), "a batch of 1"),
        (lambda model: model.fit(WINDOWS, batch_size=1, verbose=0), "a batch of 1"),
        (lambda model: model.fit(WINDOWS, batch_size=5, verbose=0), "a batch of 1"),
        (lambda model: model.fit(WINDOWS[:0], verbose=0), "a batch of 0"),
        (lambda model: model.train_on_batch(WINDOWS[:1]), "a batch of 1"),
    ],
)
def test_a_batch_without_negatives_is_refused(fit, received):
    model = small_model()

    with pytest.raises(ValueError, match=rf"{WINDOWS_SHAPE} and a batch of 2 or more videos.* Received: {received}\."):
        fit(model)
    assert model.steps_taken == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batches": 4}, "a batch of 4 or more videos, a multiple of micro_batches=4"),
        ({"micro_batches": 6, "accumulate": "plain"}, "a batch of 12 or more videos, a multiple of micro_batches=6"),
    ],
)
def test_a_batch_that_cannot_be_divided_into_micro_batches_is_refused(options, message):
    model = small_model()
    model.compile("sgd", **options)

    with pytest.raises(ValueError, match=f"{message}.* Received: a batch of 6"):
        model.fit(WINDOWS, batch_size=6, verbose=0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="elsewhere, shapes are known before the step")
def test_a_last_batch_of_one_video_in_tf_data_is_refused_in_the_step():
    import tensorflow as tf

    model = small_model()

    with pytest.raises(tf.errors.InvalidArgumentError, match="expected at least 2 videos in every batch"):
        model.fit(tf_batches(WINDOWS, 5), verbose=0)
    assert np.isfinite(ops.convert_to_numpy(model.objective.invariance_weights.average)).all()


@pytest.mark.parametrize(
    "options", [{"loss": "mse"}, {"metrics": ["accuracy"]}, {"loss_weights": [1.0]}, {"weighted_metrics": ["mse"]}]
)
def test_another_loss_or_metric_is_refused(options):
    with pytest.raises(ValueError, match=rf"`{next(iter(options))}` cannot be set: `HDC\.objective` provides"):
        small_model().compile("sgd", **options)


def test_xla_is_off_by_default_on_a_cpu():
    model = small_model()

    assert model.jit_compile is (keras.backend.backend() == "jax")
    with pytest.raises(ValueError, match=r"`jit_compile` must be True, False or .*Received: 'off'"):
        model.compile(jit_compile="off")
