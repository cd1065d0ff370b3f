"""Batched augmentation of clips, on the device, on any backend.

Each transform is a pair of functions: `draw_*` draws parameters for a batch, `apply_*` applies them. All frames of a
clip share its parameters, and two clips with the same parameters are transformed in the same way. Only the place of a
crop may differ from frame to frame, where it follows the camera (`framing.py`).

Geometry (crop, resize, flip, blur) is linear along each axis: two matrix products per frame, with one matrix for the
rows and one for the columns. Colour (brightness, contrast, saturation, hue, grey) is affine in RGB: one 3 x 3 matrix
and one offset per clip. There is no loop over samples.
"""

import math
from typing import Any

import numpy as np
from keras import ops, random

from hdc_keras.config import ViewsConfig
from hdc_keras.views.camera import LUMA
from hdc_keras.views.framing import framing, within

Tensor = Any
Parameters = dict[str, Tensor]

# `views.blur_sigma` is given for this view size and scales with the view.
_BLUR_REFERENCE_SIZE = 112
# The YIQ axes that match luma, in which a rotation of the chroma plane changes hue.
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
        box (batch, 4): top, left, height, width as fractions of the frame, or of the part of it that `framing` gives
        (see `within`); flip (batch,): 0 or 1; sigma (batch,): standard deviation of the blur in pixels of the view, 0
        for no blur. All float32.
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


def apply_geometry(clips: Tensor, parameters: Parameters, size: int) -> Tensor:
    """Crop, resize with an antialiased bilinear filter, flip and blur.

    Args:
        clips: (batch, time, height, width, 3) float.
        parameters: what `draw_geometry` returned; boxes are fractions of the frame, (batch, 4), or (batch, time, 4) for
            a box of its own for each frame. Where a box reaches over the frame's edge, the edge is repeated.
        size: height and width of the result in pixels.

    Returns:
        (batch, time, size, size, 3), in the dtype of the clips.
    """
    height, width, channels = clips.shape[2:]
    time = ops.shape(clips)[1]  # unknown until run time in an exported model
    box = parameters["box"]
    box = box if len(box.shape) == 3 else box[:, None]
    top, left, box_height, box_width = ops.unstack(box, num=4, axis=-1)  # (batch, time or 1)
    flip = parameters["flip"][:, None]
    blur = _blur_matrix(parameters["sigma"], size)[:, None]
    rows = ops.matmul(blur, _resize_matrix(top, box_height, ops.zeros_like(flip), height, size))
    columns = ops.matmul(blur, _resize_matrix(left, box_width, flip, width, size))
    rows, columns = ops.cast(rows, clips.dtype), ops.transpose(ops.cast(columns, clips.dtype), (0, 1, 3, 2))
    # (batch, time, size, width * 3)
    clips = ops.matmul(rows, ops.reshape(clips, (-1, time, height, width * channels)))
    # Channels before columns, so that one large product takes all rows of all frames, or of a frame.
    clips = ops.transpose(ops.reshape(clips, (-1, time * size, width, channels)), (0, 1, 3, 2))
    if box.shape[1] == 1:
        # In three dimensions: TensorFlow 2.21 crashes when it broadcasts products of (batch, 1, ...) and (1, 1, ...).
        clips = ops.matmul(ops.reshape(clips, (-1, time * size * channels, width)), columns[:, 0])
    else:
        clips = ops.matmul(ops.reshape(clips, (-1, time, size * channels, width)), columns)
    clips = ops.transpose(ops.reshape(clips, (-1, time * size, channels, size)), (0, 1, 3, 2))
    return ops.reshape(clips, (-1, time, size, size, channels))


def even_crops(clips: Tensor, size: int, crops: int = 1, focus: float | None = None, steady: bool = False) -> Tensor:
    """The crops that evaluation and exported models use: `size` x `size` pixels, without random augmentation.

    A single crop is central; several are spread evenly along the longer side, from one end to the other. Frames smaller
    than a crop are enlarged. With `focus`, a single crop is the whole square round what moves, and several are squares
    of that size.

    Args:
        clips: (batch, time, height, width, 3) uint8, or float in [0, 255].
        size: height and width of the result in pixels.
        crops: number of crops.
        focus: as in `ViewsConfig`.
        steady: as in `ViewsConfig`.

    Returns:
        (crops * batch, time, size, size, 3) float32 in [0, 1]: the first crop of all clips, then the second.
    """
    side = focus * min(clips.shape[2:4]) if focus else size
    height, width = (min(1.0, side / length) for length in clips.shape[2:4])
    zero = ops.zeros((1,))
    focus_of_crop = focus if crops == 1 else None
    outer = framing(clips, focus_of_crop, steady) if focus_of_crop or steady else None
    clips = ops.cast(clips, "float32") / 255.0
    if focus and crops == 1:
        return apply_geometry(clips, {"box": outer, "flip": zero, "sigma": zero}, size)
    views = []
    for number in range(crops):
        position = number / (crops - 1) if crops > 1 else 0.5
        down, right = (0.5, position) if clips.shape[3] >= clips.shape[2] else (position, 0.5)
        box = ops.convert_to_tensor([[(1 - height) * down, (1 - width) * right, height, width]], dtype="float32")
        box = box if outer is None else within(outer, box)
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
    mean_luma = ops.sum(ops.multiply(ops.cast(ops.mean(pixels, axis=1), "float32"), LUMA), axis=-1)
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
    """(batch, frames, size, length): row i holds the weights of the source pixels in output pixel i."""
    start, extent, flip = (ops.expand_dims(part, -1) for part in (start, extent, flip))  # LiteRT lacks `[..., None]`
    step = extent * (length / size)  # (batch, frames, 1) source pixels per output pixel
    output = ops.arange(size, dtype="float32") + 0.5
    output = ops.where(flip > 0.5, size - output, output)
    centre = start * length + output * step - 0.5  # (batch, frames, size)
    centre = ops.expand_dims(ops.clip(centre, -0.5, length - 0.5), -1)
    reach = ops.expand_dims(ops.maximum(step, 1.0), -1)  # wider when shrinking, so that every source pixel counts
    distance = ops.abs(ops.arange(length, dtype="float32") - centre)
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
