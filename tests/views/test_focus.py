"""`views.focus`: crops from a square round what moves."""

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.backbones import build_backbone
from hdc_keras.config import Experiment, ViewsConfig
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.finetuning.classifier import ClipAugmentation, VideoClassifier
from hdc_keras.finetuning.recipes import FINE_TUNING, changed
from hdc_keras.model import HDC
from hdc_keras.views.framing import framing, within
from hdc_keras.views.generator import ViewGenerator
from hdc_keras.views.transforms import even_crops

HEIGHT, WIDTH, BLOB = 40, 60, 6
RNG = np.random.default_rng(0)


def clip_with_blob_at(top, left, frames=4, moves=2):
    """A bright blob that moves to the right on a still, textured background. (time, height, width, 3) uint8."""
    clip = np.repeat(RNG.integers(0, 120, (1, HEIGHT, WIDTH, 3)), frames, axis=0)
    clip = clip + RNG.integers(0, 4, clip.shape)  # noise of a camera
    for time in range(frames):
        clip[time, top : top + BLOB, left + moves * time : left + moves * time + BLOB] = 255
    return clip.astype(np.uint8)


def squares(clips, focus=0.5):
    return ops.convert_to_numpy(framing(np.stack(clips), focus, steady=False))[:, 0]


@pytest.mark.parametrize("top, left", [(17, 25), (10, 20), (24, 36)])
def test_the_square_is_centred_on_what_moves(top, left):
    (square,) = squares([clip_with_blob_at(top, left)])

    np.testing.assert_allclose(square[2:], [20 / HEIGHT, 20 / WIDTH])  # half of the shorter side, in pixels
    centre = (square[:2] + square[2:] / 2) * [HEIGHT, WIDTH]
    blob = np.array([top + BLOB / 2, left + 3 + BLOB / 2])
    np.testing.assert_allclose(centre, blob, atol=1.5)  # pixels; a little nearer to the middle of the frame


def test_the_square_stays_within_the_frame():
    corner, opposite = squares([clip_with_blob_at(0, 0), clip_with_blob_at(HEIGHT - BLOB, WIDTH - BLOB - 6)])

    np.testing.assert_allclose(corner[:2], 0, atol=1e-6)
    np.testing.assert_allclose(opposite[:2] + opposite[2:], 1, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 4])
def test_the_square_is_in_the_middle_if_nothing_moves(frames):
    still = np.repeat(RNG.integers(0, 255, (1, HEIGHT, WIDTH, 3)), frames, axis=0).astype(np.uint8)

    (square,) = squares([still])
    np.testing.assert_allclose(square[:2] + square[2:] / 2, 0.5, atol=1e-6)


def test_the_square_stays_near_the_middle_if_the_camera_moves():
    wide = RNG.integers(0, 255, (HEIGHT, WIDTH + 9, 3))
    wide[: HEIGHT // 3] = wide[: HEIGHT // 3] // 255  # almost no texture in the upper third
    panned = np.stack([wide[:, 3 * time : 3 * time + WIDTH] for time in range(4)]).astype(np.uint8)

    (square,) = squares([panned])
    np.testing.assert_allclose(square[:2] + square[2:] / 2, 0.5, atol=0.05)


def test_a_box_within_a_square_is_a_part_of_it():
    outer = np.array([[[0.2, 0.4, 0.5, 0.4]]], "float32")

    inner = ops.convert_to_numpy(within(outer, np.array([[0.5, 0.25, 0.5, 0.5]], "float32")))[:, 0]
    np.testing.assert_allclose(inner, [[0.45, 0.5, 0.25, 0.2]], atol=1e-6)


def test_evaluation_sees_the_whole_square():
    clips = np.stack([clip_with_blob_at(10, 20)])
    top, left = np.round(squares(clips)[0, :2] * [HEIGHT, WIDTH]).astype(int)

    seen = ops.convert_to_numpy(even_crops(clips, 20, focus=0.5))[0]
    assert np.abs(seen - clips[0, :, top : top + 20, left : left + 20] / 255).mean() < 0.1  # to half a pixel
    assert even_crops(clips, 20, crops=3, focus=0.5).shape == (3, 4, 20, 20, 3)


def test_every_crop_of_a_view_shows_what_moves():
    config = ViewsConfig(size=16, focus=0.5, crop_area=(0.6, 1), jitter=0, grey=0, blur=0, fade_static=0)
    windows = np.stack([[clip_with_blob_at(4, 2), clip_with_blob_at(30, 48)]] * 16)

    views = ops.convert_to_numpy(ViewGenerator(config, "decoupled", seed=0)(windows)).reshape(3, 16, 4, 16, 16, 3)
    # The blob covers 36 of the 400 pixels of the square, and a crop is at least 0.6 of it.
    bright = (views > 0.9).all(axis=-1).mean(axis=(2, 3, 4))
    assert bright.min() > 0.03
    whole = ViewGenerator(config.model_copy(update={"focus": None}), "decoupled", seed=0)
    assert (ops.convert_to_numpy(whole(windows)) > 0.9).all(axis=-1).mean() < 0.6 * bright.mean()


def test_temporal_negatives_have_the_crop_of_the_anchor():
    config = ViewsConfig(
        size=16,
        focus=0.5,
        jitter=0,
        grey=0,
        blur=0,
        fade_static=0,
        temporal_negatives=["reversed", "shuffled", "frozen"],
    )
    windows = np.stack([[clip_with_blob_at(8, 12, moves=6), clip_with_blob_at(30, 30)]] * 8)

    generator = ViewGenerator(config, "temporal", seed=0)
    views = ops.convert_to_numpy(generator(windows)).reshape(-1, 8, 4, 16, 16, 3)
    by_name = dict(zip(generator.view_names, views, strict=True))
    np.testing.assert_allclose(by_name["reversed"], by_name["anchor"][:, ::-1], atol=1e-6)
    ordered = np.sort(by_name["shuffled"].reshape(8, 4, -1).sum(axis=-1))
    np.testing.assert_allclose(ordered, np.sort(by_name["anchor"].reshape(8, 4, -1).sum(axis=-1)), rtol=1e-5)


def test_the_encoder_and_fine_tuning_see_the_square_too():
    clips = np.stack([clip_with_blob_at(4, 2, frames=8), clip_with_blob_at(28, 44, frames=8)])
    model = HDC(build_backbone("r3d_small_motion"), {"size": 16, "focus": 0.5})

    encoded = ops.convert_to_numpy(ClipEncoder(model, (HEIGHT, WIDTH))(clips)["P5"])
    expected = model.backbone(even_crops(clips, 16, focus=0.5), training=False)
    np.testing.assert_allclose(encoded, ops.convert_to_numpy(expected).mean(axis=(1, 2, 3)), rtol=1e-3, atol=1e-5)

    classifier = VideoClassifier(model.backbone, ["a", "b"], {"size": 16, "focus": 0.5})
    logits = classifier.classifier(ops.mean(expected, (1, 2, 3)))
    np.testing.assert_allclose(
        ops.convert_to_numpy(classifier(clips[:, None])), ops.convert_to_numpy(logits), rtol=1e-3, atol=1e-5
    )
    views = ClipAugmentation(ViewsConfig(size=16, focus=0.5, crop_area=(0.6, 1), jitter=0, grey=0, blur=0), 0)(clips)
    assert (ops.convert_to_numpy(views) > 0.9).all(axis=-1).mean(axis=(1, 2, 3)).min() > 0.03


def test_a_recipe_of_a_run_with_focus_says_so():
    experiment = Experiment.model_validate({"views": {"focus": 0.5, "size": 16}})
    vcop = FINE_TUNING["finetune-vcop"]
    used = vcop.applied(experiment)

    assert changed(vcop, used)["focus"] == [None, 0.5]
    # A fixed crop of 16 pixels from a square of 20.
    assert used.view_settings((HEIGHT, WIDTH))["crop_area"] == pytest.approx((0.64, 0.64))
    assert "focus" not in changed(vcop, vcop.applied(Experiment()))


def test_models_with_focus_are_saved_and_loaded(tmp_path):
    model = HDC(build_backbone("r3d_small_motion"), {"size": 16, "focus": 0.5})
    model.save(tmp_path / "model.keras")

    assert keras.models.load_model(tmp_path / "model.keras").views_config.focus == 0.5
