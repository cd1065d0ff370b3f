import numpy as np
import pytest
from keras import ops

from hdc_keras.views import transforms

RNG = np.random.default_rng(0)


def clips(batch=2, time=3, height=20, width=28):
    return RNG.random((batch, time, height, width, 3)).astype("float32")


def geometry(batch, box=(0, 0, 1, 1), flip=0.0, sigma=0.0):
    return {
        "box": ops.convert_to_tensor(np.tile(np.float32(box), (batch, 1))),
        "flip": ops.full((batch,), flip),
        "sigma": ops.full((batch,), sigma),
    }


def colour(batch, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    values = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    return {name: ops.full((batch,), value) for name, value in values.items()}


def apply_geometry(pixels, size, **parameters):
    return ops.convert_to_numpy(transforms.apply_geometry(pixels, geometry(len(pixels), **parameters), size))


def apply_colour(pixels, **parameters):
    return ops.convert_to_numpy(transforms.apply_colour(pixels, colour(len(pixels), **parameters)))


def test_a_crop_at_pixel_scale_is_a_slice():
    pixels = clips(height=20, width=28)

    cropped = apply_geometry(pixels, 10, box=(4 / 20, 6 / 28, 10 / 20, 10 / 28))

    np.testing.assert_allclose(cropped, pixels[:, :, 4:14, 6:16], atol=1e-5)


def test_a_flip_mirrors_left_and_right():
    pixels = clips(height=16, width=16)

    np.testing.assert_allclose(apply_geometry(pixels, 16, flip=1.0), pixels[:, :, :, ::-1], atol=1e-5)


@pytest.mark.parametrize("size", [7, 16, 40])
def test_resizing_agrees_with_an_antialiased_bilinear_filter(size):
    from keras import backend

    if backend.backend() != "tensorflow":
        pytest.skip("the reference is TensorFlow's own resize")
    import tensorflow as tf

    pixels = clips(1, 2, 20, 28)
    expected = tf.image.resize(pixels[0], (size, size), antialias=True).numpy()

    np.testing.assert_allclose(apply_geometry(pixels, size)[0], expected, atol=2e-3)


def test_a_blur_is_a_gaussian_convolution():
    pixels = np.zeros((1, 1, 31, 31, 3), "float32")
    pixels[0, 0, 15, 15] = 1

    blurred = apply_geometry(pixels, 31, sigma=2.0)[0, 0, :, :, 0]

    steps = np.arange(31) - 15
    gaussian = np.exp(-0.5 * (steps / 2) ** 2)
    gaussian /= gaussian.sum()
    np.testing.assert_allclose(blurred, np.outer(gaussian, gaussian), atol=1e-5)


def test_constant_images_stay_constant_under_any_geometry():
    pixels = np.full((4, 2, 20, 28, 3), 0.3, "float32")

    np.testing.assert_allclose(
        apply_geometry(pixels, 12, box=(0.1, 0.2, 0.5, 0.7), sigma=1.5, flip=1.0), 0.3, atol=1e-5
    )


def test_brightness_multiplies():
    pixels = 0.5 * clips()

    np.testing.assert_allclose(apply_colour(pixels, brightness=1.4), 1.4 * pixels, atol=1e-5)


def test_contrast_moves_away_from_the_clips_mean_luma():
    pixels = 0.3 + 0.2 * clips()
    luma = (pixels @ np.float32([0.299, 0.587, 0.114])).mean(axis=(1, 2, 3))[:, None, None, None, None]

    np.testing.assert_allclose(apply_colour(pixels, contrast=1.3), luma + 1.3 * (pixels - luma), atol=1e-5)


def test_no_saturation_is_greyscale_luma():
    pixels = clips()
    luma = pixels @ np.float32([0.299, 0.587, 0.114])

    np.testing.assert_allclose(apply_colour(pixels, saturation=0.0), np.repeat(luma[..., None], 3, -1), atol=1e-3)


def test_turning_the_hue_keeps_luma_and_a_full_turn_changes_nothing():
    pixels = 0.4 + 0.2 * clips()
    turned = apply_colour(pixels, hue=0.25)
    weights = np.float32([0.299, 0.587, 0.114])

    assert np.abs(turned - pixels).max() > 0.05
    np.testing.assert_allclose(turned @ weights, pixels @ weights, atol=2e-3)
    np.testing.assert_allclose(apply_colour(pixels, hue=1.0), pixels, atol=1e-4)


def test_fading_removes_the_background_and_keeps_motion():
    pixels = np.full((1, 4, 8, 8, 3), 0.8, "float32")
    pixels[0, 1, 2, 2] = 0.4
    mean = pixels.mean(axis=1, keepdims=True)

    def faded(share):
        return ops.convert_to_numpy(
            transforms.apply_fading(ops.convert_to_tensor(pixels), {"share": ops.full((1,), share)})
        )

    np.testing.assert_allclose(faded(1.0), pixels - mean + 0.5, atol=1e-6)
    np.testing.assert_array_equal(faded(0.0), pixels)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 40, 32), (128, 171, 112), (24, 40, 32)])
def test_the_centre_crop_is_the_middle_at_pixel_scale(height, width, size):
    pixels = RNG.integers(0, 255, (1, 2, height, width, 3), dtype=np.uint8)
    rows, columns = min(height, size), min(width, size)
    top, left = (height - rows) / 2, (width - columns) / 2

    cropped = ops.convert_to_numpy(transforms.even_crops(pixels, size))

    assert cropped.shape == (1, 2, size, size, 3) and cropped.dtype == np.float32
    if rows == columns == size:
        # Where the middle lies between two pixels, their mean is expected.
        slices = [
            pixels[:, :, y : y + size, x : x + size] / 255
            for y in {int(np.floor(top)), int(np.ceil(top))}
            for x in {int(np.floor(left)), int(np.ceil(left))}
        ]
        np.testing.assert_allclose(cropped, np.mean(slices, axis=0), atol=1e-5)
    else:  # scaled up from the middle: as bright as that, on average
        middle = pixels[:, :, :, int(left) : int(left) + columns] / 255
        np.testing.assert_allclose(cropped.mean(axis=(2, 3)), middle.mean(axis=(2, 3)), atol=0.02)


def test_equal_frames_of_a_clip_stay_equal():
    frames = np.repeat(RNG.random((1, 1, 20, 28, 3), np.float32), 4, axis=1)
    out = apply_colour(apply_geometry(frames, 16, box=(0.1, 0.1, 0.6, 0.6), sigma=1.0), brightness=1.2, hue=0.1)

    assert out.std() > 0.01
    np.testing.assert_allclose(out, np.repeat(out[:, :1], 4, axis=1), atol=1e-6)
