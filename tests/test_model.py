import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC, R3D
from hdc_keras.contrast.losses import info_nce
from hdc_keras.errors import ConfigError

RNG = np.random.default_rng(0)
WINDOWS = RNG.integers(0, 255, (6, 2, 4, 20, 20, 3), dtype=np.uint8)
ALL_NEGATIVES = ["shifted", "reversed", "shuffled", "frozen"]


def small_model(views=None, contrast=None, **options):
    keras.utils.set_random_seed(0)
    backbone = R3D([4, 4, 6, 8], [1, 1, 1, 1], name="small")
    contrast = {"embedding_dim": 8, **(contrast or {})}
    model = HDC(backbone, {"size": 16, **(views or {})}, contrast, **options)
    model.compile(keras.optimizers.SGD(0.05))
    return model


def test_embeddings_come_by_level_and_task():
    outputs = small_model()(WINDOWS)

    assert {name for name in outputs if name.startswith("P3")} == {"P3_features", "P3_spatial", "P3_temporal"}
    assert outputs["P5_temporal"].shape == (3, 6, 8) and outputs["P5_features"].shape == (3, 6, 8)
    np.testing.assert_allclose(np.linalg.norm(ops.convert_to_numpy(outputs["P2_spatial"]), axis=-1), 1, atol=1e-5)


def test_the_loss_is_the_weighted_sum_over_levels_and_tasks():
    model = small_model(
        {"temporal_negatives": ["reversed"]},
        {
            "weighting": "fixed",
            "levels": ["P3", "P5"],
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
def test_every_ablation_trains_every_weight_it_has(task, weighting):
    model = small_model({"temporal_negatives": ALL_NEGATIVES}, {"task": task, "weighting": weighting})
    before = [v.numpy().copy() if hasattr(v, "numpy") else np.array(v) for v in model.trainable_variables]

    history = model.fit(WINDOWS, batch_size=6, epochs=2, verbose=0)

    after = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert all(np.isfinite(history.history["loss"]))
    unmoved = [v.path for v, a, b in zip(model.trainable_variables, before, after, strict=True) if np.array_equal(a, b)]
    assert not unmoved


def test_one_level_trains_only_up_to_it():
    model = small_model(contrast={"levels": ["P3"]})

    assert not any("stage4" in v.path or "stage5" in v.path for v in model.pyramid.trainable_variables)
    assert np.isfinite(model.fit(WINDOWS, batch_size=6, verbose=0).history["loss"][0])


def test_a_task_may_have_levels_of_its_own():
    model = small_model(contrast={"spatial_levels": ["P2", "P3"], "temporal_levels": ["P5"]})
    outputs = model(WINDOWS, training=True)
    model.compute_loss(y_pred=outputs)
    weights = ops.convert_to_numpy(model.invariance_weights.loss_weights())

    assert sorted(model.heads) == ["P2_spatial", "P3_spatial", "P5_temporal"]
    assert {name for name in outputs if name.endswith("al")} == set(model.heads)
    np.testing.assert_array_equal(weights > 0, [[True, False], [True, False], [False, False], [False, True]])
    np.testing.assert_allclose(weights.sum(axis=0), [2.0, 1.0], atol=1e-6)
    assert np.isfinite(model.fit(WINDOWS, batch_size=6, verbose=0).history["loss"][0])


def test_metrics_are_means_over_the_epoch():
    model = small_model(contrast={"levels": ["P5"]})
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
        ops.convert_to_numpy(loaded.invariance_weights.average), ops.convert_to_numpy(model.invariance_weights.average)
    )
    for again in (model, loaded):
        again.fit(WINDOWS, batch_size=6, epochs=2, verbose=0, shuffle=False)
    for one, other in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-5, err_msg=one.path)


def test_the_gradient_is_that_of_finite_differences():
    model = small_model({"flip": 0.0}, {"levels": ["P5"], "weighting": "uniform"})

    def loss_of(embeddings):
        return model.compute_loss(y_pred=embeddings, training=False)

    features = RNG.normal(size=(3, 6, 8))
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the tape is TensorFlow's")
    import tensorflow as tf

    variable = tf.Variable(features, dtype=tf.float32)
    with tf.GradientTape() as tape:
        unit = tf.math.l2_normalize(variable, axis=-1)
        loss = loss_of({"P5_features": variable, "P5_spatial": unit, "P5_temporal": unit})
    gradient = tape.gradient(loss, variable).numpy()

    def slow(values):
        from tests.contrast.test_losses import slow_info_nce

        unit = values / np.linalg.norm(values, axis=-1, keepdims=True)
        return slow_info_nce(unit[0], unit[1], 0.1) + slow_info_nce(unit[0], unit[2], 0.1)

    for place in [(0, 0, 0), (1, 2, 3), (2, 5, 7), (0, 4, 1)]:
        step = np.zeros_like(features)
        step[place] = 1e-5
        finite = (slow(features + step) - slow(features - step)) / 2e-5
        assert gradient[place] == pytest.approx(finite, abs=1e-4)


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"unknown key `weigthing`. Did you mean `weighting`\?"):
        small_model(contrast={"weigthing": "uniform"})


def test_xla_is_off_by_default_on_a_cpu():
    model = small_model()

    assert model.jit_compile is (keras.backend.backend() == "jax")
