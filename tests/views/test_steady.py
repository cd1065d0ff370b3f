"""`views.steady`: the camera's motion is found and taken out."""

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.config import ViewsConfig
from hdc_keras.finetuning.classifier import ClipAugmentation
from hdc_keras.views.camera import _from_middle, camera_motion, grey_frames
from hdc_keras.views.framing import framing
from hdc_keras.views.generator import ViewGenerator
from hdc_keras.views.transforms import even_crops

FRAMES, HEIGHT, WIDTH = 5, 60, 80
MIDDLE = FRAMES // 2
RNG = np.random.default_rng(0)


def smooth(image, times=3):
    """Like a photo, whose neighbouring pixels are alike: (height, width, 3)."""
    for _ in range(times):
        image = (image + np.roll(image, 1, 0) + np.roll(image, 1, 1) + np.roll(image, (1, 1), (0, 1))) / 4
    return (image - image.min()) / (image.max() - image.min()) * 255


SCENE = smooth(RNG.random((HEIGHT + 40, WIDTH + 40, 3)))
# Where the camera looks in each frame, in pixels from the upper left of the scene: down, right.
PATH = np.array([[20, 20], [22, 17], [23, 15], [21, 18], [20, 22]])


def filmed(scene, path):
    frames = [scene[down : down + HEIGHT, right : right + WIDTH] for down, right in path]
    return (np.stack(frames) + RNG.normal(0, 1, (len(path), HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)


def with_person(clip, step=3, top=18, start=30):
    """With something of strong contrast that walks to the right."""
    clip = clip.copy()
    for time, frame in enumerate(clip):
        left = start + step * time
        frame[top : top + 24, left : left + 10] = np.where(np.arange(24)[:, None, None] % 6 < 3, 255, 0)
    return clip


def motion_of(*clips):
    return ops.convert_to_numpy(camera_motion(grey_frames(np.stack(clips))))


def zoomed(scene, factors):
    """The scene as seen by a camera that zooms, by bilinear interpolation about the centre."""
    frames = []
    for factor in factors:
        rows = (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) * factor + scene.shape[0] / 2 - 0.5
        columns = (np.arange(WIDTH) + 0.5 - WIDTH / 2) * factor + scene.shape[1] / 2 - 0.5
        top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
        y, x = (rows - top)[:, None, None], (columns - left)[None, :, None]
        upper = scene[top][:, left] * (1 - x) + scene[top][:, left + 1] * x
        lower = scene[top + 1][:, left] * (1 - x) + scene[top + 1][:, left + 1] * x
        frames.append(upper * (1 - y) + lower * y)
    return np.stack(frames).astype(np.uint8)


@pytest.mark.parametrize("person", [False, True])
def test_a_shaken_camera_is_found(person):
    clip = filmed(SCENE, PATH)

    (motion,) = motion_of(with_person(clip) if person else clip)
    expected = (PATH[MIDDLE] - PATH) / [HEIGHT, WIDTH]  # a camera that looks further down shows things further up
    np.testing.assert_allclose(motion[:, 1:], expected, atol=0.01)  # of the frame: 0.6 and 0.8 pixels
    np.testing.assert_allclose(motion[:, 0], 1, atol=0.02)


def test_a_zoom_is_found():
    factors = [1.1, 1.06, 1.0, 0.96, 0.9]

    (motion,) = motion_of(zoomed(SCENE, factors))
    np.testing.assert_allclose(motion[:, 0], 1 / np.array(factors), atol=0.02)
    np.testing.assert_allclose(motion[:, 1:], 0, atol=0.01)


def test_a_camera_that_stands_still_is_left_alone_whoever_walks_by():
    textured = filmed(SCENE, np.repeat(PATH[:1], FRAMES, axis=0))
    plain = filmed(np.full_like(SCENE, 130.0), np.repeat(PATH[:1], FRAMES, axis=0))

    motion = motion_of(textured, with_person(textured), plain, with_person(plain))
    np.testing.assert_array_equal(motion, np.broadcast_to([1.0, 0.0, 0.0], motion.shape))


@pytest.mark.parametrize(
    "factors, offset", [([1.0, 1.05, 1.1, 1.05, 1.0], 0), ([1, 0.94, 0.88, 0.82, 0.76], 0), ([1] * 5, 6)]
)
def test_a_change_of_light_is_not_taken_for_motion(factors, offset):
    scene = 40 + SCENE * 0.6
    still = filmed(scene, np.repeat(PATH[:1], FRAMES, axis=0)).astype(float)
    lit = still * np.reshape(factors, (-1, 1, 1, 1)) + offset * np.arange(FRAMES).reshape(-1, 1, 1, 1)

    (motion,) = motion_of(lit.clip(0, 255).astype(np.uint8))
    np.testing.assert_array_equal(motion, np.broadcast_to([1.0, 0.0, 0.0], motion.shape))


def test_a_shaken_camera_is_found_although_the_light_changes():
    clip = filmed(40 + SCENE * 0.6, PATH) * np.linspace(1, 0.8, FRAMES).reshape(-1, 1, 1, 1)

    (motion,) = motion_of(clip.astype(np.uint8))
    np.testing.assert_allclose(motion[:, 1:], (PATH[MIDDLE] - PATH) / [HEIGHT, WIDTH], atol=0.01)


@pytest.mark.parametrize("height, width", [(200, 20), (16, 16), (20, 200), (3, 5)])
def test_frames_of_any_shape_are_compared(height, width):
    frames = RNG.integers(0, 255, (1, 3, height, width, 3)).astype(np.uint8)

    assert np.isfinite(motion_of(*frames)).all()


def test_a_long_zoom_stays_finite():
    steps = np.tile(np.array([0.9, 0.01, 0.0], "float32"), (1, 1500, 1))

    assert np.isfinite(ops.convert_to_numpy(_from_middle(ops.convert_to_tensor(steps), 1501))).all()


def test_a_cut_is_not_taken_for_motion():
    before, after = filmed(SCENE, PATH[:3]), filmed(SCENE[::-1, ::-1], PATH[3:])

    (motion,) = motion_of(np.concatenate([before, after]))
    np.testing.assert_allclose(motion[3], motion[2], atol=1e-6)


@pytest.mark.parametrize("focus", [None, 0.6])
@pytest.mark.parametrize("crops", [1, 3])
def test_evaluation_sees_the_background_stand_still(focus, crops):
    clips = with_person(filmed(SCENE, PATH))[None]

    def unrest(steady):
        seen = ops.convert_to_numpy(even_crops(clips, 32, crops, focus, steady))
        assert seen.shape == (crops, FRAMES, 32, 32, 3)
        return np.median(np.abs(np.diff(seen, axis=1)))

    assert unrest(steady=True) < 0.25 * unrest(steady=False)


def test_the_square_follows_the_person_not_the_camera():
    shaken = with_person(filmed(SCENE, PATH), top=26, start=44)

    def miss(steady):
        box = ops.convert_to_numpy(framing(shaken[None], 0.4, steady))[0, MIDDLE if steady else 0]
        return np.abs((box[:2] + box[2:] / 2) * [HEIGHT, WIDTH] - [38, 49 + 3 * MIDDLE]).max()

    assert miss(steady=True) < 4 < miss(steady=False)  # pixels


def test_a_single_frame_has_no_motion():
    frame = filmed(SCENE, PATH[:1])

    np.testing.assert_array_equal(motion_of(frame)[0], [[1, 0, 0]])
    seen = ops.convert_to_numpy(even_crops(frame[None], 24, focus=0.5, steady=True))
    assert seen.shape == (1, 1, 24, 24, 3) and np.isfinite(seen).all()


def test_views_in_another_order_show_the_same_frames():
    config = ViewsConfig(
        size=24, steady=True, focus=0.6, fade_static=0, temporal_negatives=("reversed", "shuffled", "frozen")
    )
    generator = ViewGenerator(config, "temporal", seed=1)
    windows = with_person(filmed(SCENE, PATH))[None, None].repeat(2, axis=1)

    views = ops.convert_to_numpy(generator(windows)).reshape(len(generator.view_names), FRAMES, 24, 24, 3)
    by_name = dict(zip(generator.view_names, views, strict=True))
    anchor = by_name["anchor"]
    np.testing.assert_allclose(by_name["reversed"], anchor[::-1], atol=1e-5)
    # Contrast is changed about the mean of a clip, which other frames than all of them change a little.
    for frame in [*by_name["shuffled"], by_name["frozen"][0]]:
        assert np.abs(anchor - frame).mean(axis=(1, 2, 3)).min() < 0.02
    assert np.abs(by_name["frozen"] - by_name["frozen"][:1]).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_part_of_a_batch_gets_the_same_views(dtype):
    config = ViewsConfig(size=24, steady=True, focus=0.6, still=0.5, temporal_negatives=("shuffled", "frozen"))
    generator = ViewGenerator(config, "decoupled", seed=1, dtype=dtype)
    windows = np.stack([[filmed(SCENE, PATH), filmed(SCENE[::-1], PATH[::-1])] for _ in range(3)])

    draws = generator.draw(3, windows.shape[2:5])
    whole = generator.apply(windows, draws)
    parts = []
    for place in range(3):
        of_video = keras.tree.map_structure(lambda draw, place=place: draw[place : place + 1], draws)
        parts.append(generator.apply(windows[place : place + 1], of_video))
    difference = ops.abs(ops.cast(whole, "float32") - ops.cast(ops.concatenate(parts), "float32"))
    assert float(ops.max(difference)) < {"float32": 1e-4, "mixed_bfloat16": 0.02}[dtype]


def test_fine_tuning_sees_the_background_stand_still():
    clips = filmed(SCENE, PATH)[None]

    def unrest(steady):
        config = ViewsConfig(size=32, steady=steady, crop_area=(0.5, 0.5), jitter=0, grey=0, blur=0)
        keras.utils.set_random_seed(0)
        seen = ops.convert_to_numpy(ClipAugmentation(config, seed=0)(clips))
        return np.median(np.abs(np.diff(seen, axis=1)))

    assert unrest(steady=True) < 0.25 * unrest(steady=False)
