"""Batched augmentation of clips, on the device, on any backend.

Each transform is a pair of functions: `draw_*` draws parameters for a batch, `apply_*` applies them. All frames of a
clip share its parameters, and two clips with the same parameters are transformed in the same way.

Geometry (crop, resize, flip, blur) is linear along each axis: two matrix products per frame, with one matrix for the
rows and one for the columns. Colour (brightness, contrast, saturation, hue, grey) is affine in RGB: one 3 x 3 matrix
and one offset per clip. Shapes are static, and there is no loop over samples.
"""

import math
from typing import Any

import numpy as np
from keras import ops, random

from hdc_keras.config import ViewsConfig

Tensor = Any
Parameters = dict[str, Tensor]

# `views.blur_sigma` is given for this view size and scales with the view.
_BLUR_REFERENCE_SIZE = 112
# Keeps the centre of motion defined where nothing moves. Summed over all pixels, in grey levels of 255.
_LEAST_MOTION = 1e-3
# The share of motion in one place at which the square is half-way between that place and the middle of the frame. It is
# about 0.5 with a camera that stands still and 0.1 to 0.3 with one that follows a player (our choice).
_TRUSTED_SHARE = 0.2
# Luma of ITU-R BT.601 and the matching YIQ axes, in which a rotation of the chroma plane changes hue.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ).astype(np.float32)


def draw_geometry(
    batch: int, frame_size: tuple[int, int], config: ViewsConfig, seed: random.SeedGenerator
) -> Parameters:
    """Draw crops, flips and blurs.

    Args:
        batch: number of draws.
        frame_size: (height, width) of the frames in pixels, to convert a crop's aspect ratio to fractions of the frame.
        config: ranges and probabilities.
        seed: source of randomness.

    Returns:
        box (batch, 4): top, left, height, width as fractions of the frame, or of the square of `config.focus` (see
        `within`); flip (batch,): 0 or 1; sigma (batch,):
        standard deviation of the blur in pixels of the view, 0 for no blur. All float32.
    """
    area = random.uniform((batch,), *config.crop_area, seed=seed)
    aspect = ops.exp(random.uniform((batch,), *(math.log(limit) for limit in config.crop_aspect), seed=seed))
    if config.focus is None:
        # Converts the ratio of pixels to a ratio of fractions of the frame.
        aspect = aspect * (frame_size[0] / frame_size[1])
    height = ops.minimum(ops.sqrt(area / aspect), 1.0)
    width = ops.minimum(ops.sqrt(area * aspect), 1.0)
    top = random.uniform((batch,), seed=seed) * (1.0 - height)
    left = random.uniform((batch,), seed=seed) * (1.0 - width)
    sigma = random.uniform((batch,), *config.blur_sigma, seed=seed) * (config.size / _BLUR_REFERENCE_SIZE)
    return {
        "box": ops.stack([top, left, height, width], axis=-1),
        "flip": _occurs(batch, config.flip, seed),
        "sigma": sigma * _occurs(batch, config.blur, seed),
    }


def squares_of_motion(clips: Tensor, focus: float) -> Tensor:
    """The square round what moves in each clip (our choice).

    Its centre is the centre of gravity of the absolute differences between neighbouring frames, as far as their sum
    over the clip exceeds twice its mean over the frame. The smaller the share that does, the nearer is the square to
    the middle of the frame: when the camera moves, differences are everywhere, and what is filmed is mostly in the
    middle. The square stays within the frame.

    Args:
        clips: (batch, time, height, width, 3) uint8, or float in [0, 255].
        focus: side of the square, as a fraction of the frame's shorter side.

    Returns:
        (batch, 4) float32: top, left, height, width as fractions of the frame.
    """
    height, width, channels = clips.shape[2:]
    time = ops.shape(clips)[1]  # unknown until run time in an exported model
    # Every other row is enough, and takes half the time.
    row_step = 2 if height % 2 == 0 else 1
    rows = ops.reshape(clips, (-1, time, height // row_step, row_step * width * channels))[..., : width * channels]
    rows = ops.cast(rows, "float32")
    moved = ops.sum(ops.abs(rows[:, 1:] - rows[:, :-1]), axis=1)  # a sum, because the mean of no frames is NaN
    moved = ops.sum(ops.reshape(moved, (-1, height // row_step, width, channels)), axis=-1)
    everywhere = ops.sum(moved, axis=(1, 2))
    moved = ops.maximum(moved - 2.0 * ops.mean(moved, axis=(1, 2), keepdims=True), 0.0)
    total = ops.sum(moved, axis=(1, 2))
    share = total / ops.maximum(everywhere, _LEAST_MOTION)
    trust = ops.square(share) / (ops.square(share) + _TRUSTED_SHARE**2)
    box = []
    for axis, length, step in ((2, height, row_step), (1, width, 1)):
        places = (ops.arange(0, length, step, dtype="float32") + 0.5) / length
        centre = ops.sum(ops.sum(moved, axis=axis) * places, axis=1) / ops.maximum(total, _LEAST_MOTION)
        centre = trust * centre + (1.0 - trust) * 0.5
        extent = focus * min(height, width) / length
        box.append((ops.clip(centre - extent / 2, 0.0, 1.0 - extent), ops.full_like(centre, extent)))
    return ops.stack([start for start, _ in box] + [extent for _, extent in box], axis=-1)


def within(outer: Tensor, box: Tensor) -> Tensor:
    """(batch, 4) boxes given as fractions of (batch, 4) `outer` boxes, as fractions of the frame."""
    return ops.concatenate([outer[:, :2] + outer[:, 2:] * box[:, :2], outer[:, 2:] * box[:, 2:]], axis=-1)


def apply_geometry(clips: Tensor, parameters: Parameters, size: int) -> Tensor:
    """Crop, resize with an antialiased bilinear filter, flip and blur.

    Args:
        clips: (batch, time, height, width, 3) float.
        parameters: what `draw_geometry` returned; boxes are fractions of the frame.
        size: height and width of the result in pixels.

    Returns:
        (batch, time, size, size, 3), in the dtype of the clips.
    """
    height, width, channels = clips.shape[2:]
    time = ops.shape(clips)[1]  # unknown until run time in an exported model
    top, left, box_height, box_width = ops.unstack(parameters["box"], num=4, axis=-1)
    blur = _blur_matrix(parameters["sigma"], size)
    no_flip = ops.zeros_like(parameters["flip"])
    rows = ops.matmul(blur, _resize_matrix(top, box_height, no_flip, height, size))
    columns = ops.matmul(blur, _resize_matrix(left, box_width, parameters["flip"], width, size))
    rows, columns = ops.cast(rows, clips.dtype), ops.cast(columns, clips.dtype)
    # (batch, time, size, width * 3)
    clips = ops.matmul(rows[:, None], ops.reshape(clips, (-1, time, height, width * channels)))
    # Channels before columns, so that one large product takes all rows of all frames.
    clips = ops.transpose(ops.reshape(clips, (-1, time * size, width, channels)), (0, 1, 3, 2))
    clips = ops.matmul(ops.reshape(clips, (-1, time * size * channels, width)), ops.transpose(columns, (0, 2, 1)))
    clips = ops.transpose(ops.reshape(clips, (-1, time * size, channels, size)), (0, 1, 3, 2))
    return ops.reshape(clips, (-1, time, size, size, channels))


def even_crops(clips: Tensor, size: int, crops: int = 1, focus: float | None = None) -> Tensor:
    """The crops that evaluation and exported models use: `size` x `size` pixels, without random augmentation.

    A single crop is central; several are spread evenly along the longer side, from one end to the other. Frames smaller
    than a crop are enlarged. With `focus`, a single crop is the whole square round what moves, and several are squares
    of that size.

    Args:
        clips: (batch, time, height, width, 3) uint8, or float in [0, 255].
        size: height and width of the result in pixels.
        crops: number of crops.
        focus: as in `ViewsConfig`.

    Returns:
        (crops * batch, time, size, size, 3) float32 in [0, 1]: the first crop of all clips, then the second.
    """
    side = focus * min(clips.shape[2:4]) if focus else size
    height, width = (min(1.0, side / length) for length in clips.shape[2:4])
    zero = ops.zeros((1,))
    if focus and crops == 1:
        box = squares_of_motion(clips, focus)
        return apply_geometry(ops.cast(clips, "float32") / 255.0, {"box": box, "flip": zero, "sigma": zero}, size)
    clips = ops.cast(clips, "float32") / 255.0
    views = []
    for number in range(crops):
        position = number / (crops - 1) if crops > 1 else 0.5
        down, right = (0.5, position) if clips.shape[3] >= clips.shape[2] else (position, 0.5)
        box = ops.convert_to_tensor([[(1 - height) * down, (1 - width) * right, height, width]], dtype="float32")
        views.append(apply_geometry(clips, {"box": box, "flip": zero, "sigma": zero}, size))
    return ops.concatenate(views) if crops > 1 else views[0]


def draw_colour(batch: int, config: ViewsConfig, seed: random.SeedGenerator) -> Parameters:
    """Draw colour changes.

    Args:
        batch: number of draws.
        config: ranges and probabilities.
        seed: source of randomness.

    Returns:
        brightness, contrast, saturation (batch,): factors, 1 for no change; hue (batch,): rotation as a fraction of the
        colour circle. Greyscale is a saturation of 0. All float32.
    """
    jitter = _occurs(batch, config.jitter, seed)

    def around(centre: float, spread: float) -> Tensor:
        return centre + jitter * random.uniform((batch,), -spread, spread, seed=seed)

    return {
        "brightness": around(1.0, config.brightness),
        "contrast": around(1.0, config.contrast),
        "saturation": around(1.0, config.saturation) * (1.0 - _occurs(batch, config.grey, seed)),
        "hue": around(0.0, config.hue),
    }


def apply_colour(clips: Tensor, parameters: Parameters) -> Tensor:
    """Change brightness, contrast (about the clip's mean luma), saturation and hue, and clip to [0, 1].

    Args:
        clips: (batch, time, height, width, 3) float in [0, 1].
        parameters: what `draw_colour` returned.

    Returns:
        The same shape and dtype.
    """
    time, height, width, channels = clips.shape[1:]
    gain = parameters["brightness"] * parameters["contrast"]
    matrix = ops.cast(gain[:, None, None] * _chroma_matrix(parameters["saturation"], parameters["hue"]), clips.dtype)
    pixels = ops.matmul(ops.reshape(clips, (-1, time * height * width, channels)), matrix)
    # Saturation and hue do not change luma, so this is the mean luma after brightness and contrast.
    mean_luma = ops.sum(ops.multiply(ops.cast(ops.mean(pixels, axis=1), "float32"), _LUMA), axis=-1)
    offset = mean_luma * (1.0 - parameters["contrast"]) / parameters["contrast"]
    pixels = ops.clip(pixels + ops.cast(offset[:, None, None], clips.dtype), 0.0, 1.0)
    return ops.reshape(pixels, (-1, time, height, width, channels))


def draw_fading(batch: int, config: ViewsConfig, seed: random.SeedGenerator) -> Parameters:
    """Draw how far static content fades.

    Args:
        batch: number of draws.
        config: `fade_static` is the probability of fading.
        seed: source of randomness.

    Returns:
        share (batch,) float32 in [0, 1]: at 0 nothing fades, at 1 only moving content is left.
    """
    return {"share": random.uniform((batch,), seed=seed) * _occurs(batch, config.fade_static, seed)}


def apply_fading(clips: Tensor, parameters: Parameters) -> Tensor:
    """Fade each clip's mean frame towards mid-grey, and keep every frame's difference from it.

    A static background is a shortcut for the temporal task. Two views that fade by different amounts share less of it
    (our choice, after "background erasing", Wang et al., CVPR 2021, arXiv 2009.05769).

    Args:
        clips: (batch, time, height, width, 3) float in [0, 1].
        parameters: what `draw_fading` returned.

    Returns:
        The same shape and dtype, in [0, 1].
    """
    share = ops.cast(parameters["share"], clips.dtype)[:, None, None, None, None]
    return ops.clip(clips + share * (0.5 - ops.mean(clips, axis=1, keepdims=True)), 0.0, 1.0)


def _occurs(batch: int, probability: float, seed: random.SeedGenerator) -> Tensor:
    """(batch,) float32: 1 with the given probability, else 0."""
    return ops.cast(random.uniform((batch,), seed=seed) < probability, "float32")


def _resize_matrix(start: Tensor, extent: Tensor, flip: Tensor, length: int, size: int) -> Tensor:
    """(batch, size, length): row i holds the weights of the source pixels in output pixel i."""
    step = extent[:, None] * (length / size)  # (batch, 1) source pixels per output pixel
    output = ops.arange(size, dtype="float32")[None] + 0.5
    output = ops.where(flip[:, None] > 0.5, size - output, output)
    centre = start[:, None] * length + output * step - 0.5  # (batch, size)
    reach = ops.maximum(step, 1.0)[..., None]  # a wider filter when shrinking, so that every source pixel counts
    distance = ops.abs(ops.arange(length, dtype="float32")[None, None] - centre[..., None])
    weights = ops.maximum(1.0 - distance / reach, 0.0)
    return weights / ops.sum(weights, axis=-1, keepdims=True)


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """(batch, size, size) Gaussian weights; the identity where sigma is 0."""
    steps = ops.arange(size, dtype="float32")
    squared = ops.square(steps[:, None] - steps[None])[None]
    # The floor avoids a division by 0. A Gaussian that narrow is the identity.
    weights = ops.exp(-0.5 * squared / ops.square(ops.maximum(sigma, 1e-3))[:, None, None])
    return weights / ops.sum(weights, axis=-1, keepdims=True)


def _chroma_matrix(saturation: Tensor, hue: Tensor) -> Tensor:
    """(batch, 3, 3) to multiply pixels by from the right: scales and rotates chroma in YIQ."""
    angle = 2.0 * math.pi * hue
    cosine, sine = saturation * ops.cos(angle), saturation * ops.sin(angle)
    one, zero = ops.ones_like(hue), ops.zeros_like(hue)
    rotation = ops.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], axis=-1)
    matrix = ops.matmul(ops.matmul(_YIQ_TO_RGB, ops.reshape(rotation, (-1, 3, 3))), _RGB_TO_YIQ)
    return ops.transpose(matrix, (0, 2, 1))
