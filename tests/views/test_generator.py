import numpy as np
import pytest
from keras import ops

from hdc_keras.config import ViewsConfig
from hdc_keras.views.generator import ViewGenerator

# Strong crops, colours and blur.
STRONG = {
    "size": 16,
    "fade_static": 0.0,
    "own_colour": 0.0,
    "crop_area": (0.3, 0.6),
    "jitter": 1.0,
    "grey": 0.3,
    "blur": 0.5,
}
NEGATIVES = ("shifted", "reversed", "shuffled", "frozen")


def windows(batch=6, time=4):
    """Smooth random videos, so that neighbouring crops are alike and different frames are not."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (batch, 2, time, 5, 6, 3)).astype("uint8")
    return coarse.repeat(5, axis=3).repeat(5, axis=4)


def views_of(pixels, task="decoupled", **options):
    generator = ViewGenerator(ViewsConfig(**{**STRONG, **options}), task, seed=3)
    views = ops.convert_to_numpy(generator(pixels))
    stacked = views.reshape(len(generator.view_names), len(pixels), *views.shape[1:])
    return dict(zip(generator.view_names, stacked, strict=True))


def test_the_spatial_positive_shares_the_anchors_crop_and_colour():
    same_time = windows()
    same_time[:, 1] = same_time[:, 0]

    views = views_of(same_time)

    # With the same frames, both have the same pixels: they can differ only in time.
    np.testing.assert_allclose(views["spatial_positive"], views["anchor"], atol=1e-6)


def test_the_spatial_positive_shows_another_time():
    views = views_of(windows())

    assert np.abs(views["spatial_positive"] - views["anchor"]).mean() > 0.05


def test_the_spatial_positive_can_have_different_colours_but_keeps_the_anchors_crop():
    same_time = windows()
    same_time[:, 1] = same_time[:, 0]

    views = views_of(same_time, own_colour=1.0)
    assert np.abs(views["spatial_positive"] - views["anchor"]).mean(axis=(1, 2, 3, 4)).min() > 0.002
    views = views_of(same_time, own_colour=1.0, jitter=0.0, grey=0.0)
    np.testing.assert_allclose(views["spatial_positive"], views["anchor"], atol=1e-6)
    # The shifted negative keeps the anchor's colours, and is then a separate view.
    views = views_of(same_time, own_colour=1.0, temporal_negatives=["shifted"])
    np.testing.assert_allclose(views["shifted"], views["anchor"], atol=1e-6)


def test_the_temporal_positive_shows_the_anchors_frames():
    changed = windows()
    before = views_of(changed)["temporal_positive"]
    changed[:, 1] = 0

    # The second window does not affect the temporal positive.
    np.testing.assert_array_equal(views_of(changed)["temporal_positive"], before)


def test_the_temporal_positive_differs_in_crop_and_colour():
    constant = np.full_like(windows(), 90)
    constant[..., 0] = 160
    views = views_of(constant, grey=0.0)
    # On a constant video only colour can differ, and on a grey one without jitter only the crop can.
    assert np.abs(views["temporal_positive"] - views["anchor"]).mean(axis=(1, 2, 3, 4)).min() > 0.002

    grey = windows()[..., :1].repeat(3, axis=-1)
    views = views_of(grey, jitter=0.0, grey=0.0, blur=0.0)
    assert np.abs(views["temporal_positive"] - views["anchor"]).mean(axis=(1, 2, 3, 4)).min() > 0.02


def test_the_coupled_positive_differs_in_time_and_augmentation():
    same_time = windows()
    same_time[:, 1] = same_time[:, 0]

    for pixels in (windows(), same_time):
        views = views_of(pixels, "coupled")
        assert list(views) == ["anchor", "coupled_positive"]
        assert np.abs(views["coupled_positive"] - views["anchor"]).mean() > 0.02


def test_temporal_negatives_are_the_anchor_with_its_time_changed():
    views = views_of(windows(), temporal_negatives=NEGATIVES)
    anchor = views["anchor"]

    np.testing.assert_allclose(views["reversed"], anchor[:, ::-1], atol=1e-5)
    orders = shown_frames(views["shuffled"], anchor)
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert any(order != [0, 1, 2, 3] for order in orders)
    orders = shown_frames(views["frozen"], anchor)
    assert all(len(set(order)) == 1 for order in orders)
    assert len({order[0] for order in orders}) > 1


def shown_frames(clips, anchors):
    """For each frame of each clip, the number of the anchor's frame that it shows."""
    distances = np.abs(clips[:, :, None] - anchors[:, None]).mean(axis=(3, 4, 5))
    nearest, second = np.sort(distances, axis=2)[:, :, :2].transpose(2, 0, 1)
    assert nearest.max() < 0.05 < second.min()  # not 0: contrast is relative to the mean of all frames of the clip
    return distances.argmin(axis=2).tolist()


def test_the_shifted_negative_shows_the_second_window_with_the_anchors_crop_and_colour():
    second = windows()
    second[:, 0] = second[:, 1]

    shifted = views_of(windows(), "temporal", temporal_negatives=["shifted"])["shifted"]

    np.testing.assert_allclose(shifted, views_of(second, "temporal")["anchor"], atol=1e-6)
    assert np.abs(shifted - views_of(windows(), "temporal")["anchor"]).mean() > 0.05


def test_the_shifted_negative_is_the_spatial_positive_and_is_made_once():
    assert list(views_of(windows(), temporal_negatives=("shifted",))) == [
        "anchor",
        "spatial_positive",
        "temporal_positive",
    ]
    assert list(views_of(windows(), "temporal", temporal_negatives=("shifted",))) == [
        "anchor",
        "temporal_positive",
        "shifted",
    ]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("decoupled", ["anchor", "spatial_positive", "temporal_positive"]),
        ("spatial", ["anchor", "spatial_positive"]),
        ("temporal", ["anchor", "temporal_positive"]),
    ],
)
def test_a_task_makes_only_the_views_it_needs(task, names):
    assert list(views_of(windows(), task)) == names


def test_views_are_in_range_and_drawn_anew_each_time():
    generator = ViewGenerator(ViewsConfig(**STRONG | {"fade_static": 1.0}), seed=0)
    first, second = (ops.convert_to_numpy(generator(windows())) for _ in range(2))

    assert first.shape == (18, 4, 16, 16, 3) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    assert np.abs(first - second).mean() > 0.02


def test_crops_keep_to_their_area_and_aspect():
    import keras

    from hdc_keras.views.transforms import draw_geometry

    config = ViewsConfig(crop_area=(0.2, 0.5), crop_aspect=(0.8, 1.25))
    draws = draw_geometry(2000, (120, 160), config, keras.random.SeedGenerator(0))
    top, left, height, width = ops.convert_to_numpy(draws["box"]).T

    assert (height * width).min() >= 0.199 and (height * width).max() <= 0.501
    aspect = (width * 160) / (height * 120)
    assert aspect.min() >= 0.799 and aspect.max() <= 1.251
    assert top.min() >= 0 and (top + height).max() <= 1.0001 and (left + width).max() <= 1.0001


@pytest.mark.parametrize("negatives", [(), NEGATIVES])
def test_views_in_bfloat16_agree_with_float32(negatives):
    config = ViewsConfig(**STRONG | {"fade_static": 0.8, "own_colour": 0.5, "temporal_negatives": negatives})
    full, half = (
        ops.convert_to_numpy(ops.cast(ViewGenerator(config, seed=3, dtype=dtype)(windows()), "float32"))
        for dtype in ("float32", "mixed_bfloat16")
    )

    assert np.isfinite(half).all() and half.min() >= 0 and half.max() <= 1
    # bfloat16 has 8 bits: 0.004 at 1. A view passes through a handful of operations.
    assert np.abs(half - full).max() < 0.06 and np.abs(half - full).mean() < 0.006


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_spatial_positive_may_be_a_still_of_its_window(share):
    pixels, options = windows(batch=64), {"own_colour": 0.0, "blur": 0.0, "jitter": 0.0, "grey": 0.0}

    views = views_of(pixels, still=share, **options)
    is_still = np.ptp(views["spatial_positive"], axis=1).max(axis=(1, 2, 3)) < 1e-6
    assert is_still.mean() == pytest.approx(share, abs=0.2) and (share != 1.0 or is_still.all())
    for name in ("anchor", "temporal_positive"):
        assert not (np.ptp(views[name], axis=1).max(axis=(1, 2, 3)) < 1e-6).any()
    # A still is one of the frames of the second window, under the anchor's augmentation.
    shifted = views_of(pixels, still=share, temporal_negatives=["shifted"], **options)["shifted"]
    for still, frames in zip(views["spatial_positive"][is_still], shifted[is_still], strict=True):
        assert np.abs(frames - still[:1]).max(axis=(1, 2, 3)).min() < 1e-6
