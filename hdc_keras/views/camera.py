"""How the camera moved in a clip, found from its frames, on the device, on any backend.

Neighbouring frames are aligned by the method of Lucas and Kanade (IJCAI 1981), from coarse to fine, for a shift and a
zoom, and for a change of brightness and contrast, which must not be taken for motion. Two weights keep what is filmed
from being taken for the camera: each place counts by its own contrast, so that a person with strong edges does not
outvote a faint background, and places that do not follow the common motion count little. A motion is believed only if
the border of the frame agrees. Shifts of up to about a tenth of the frame from one frame to the next are found. All of
this is our choice.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

Tensor = Any

# Frames are compared at this height in pixels, and at a half and a quarter of it.
GREY_HEIGHT = 48
# Iterations at each size, from coarse to fine.
_ITERATIONS = (3, 2, 1)
# Iterations for the change of light alone, at half of this height.
_LIGHT_ITERATIONS = 2
# Luma of ITU-R BT.601.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Squared gradient, in grey levels per pixel, below which a place is taken for noise.
_NOISE = 9.0
# Keeps the equations solvable where nothing has contrast. In places of full weight.
_DAMPING = 1.5
# Contrast changes by at most this factor from one frame to the next.
_MOST_CONTRAST = 1.25
# The border that must agree with a motion, as a fraction of the frame on each side, and by how much more of it must
# agree than with no motion. With a camera that stands still, at most 0.01 does.
_BORDER, _LEAST_GAIN = 0.2, 0.02
# Squared distance in pixels at which a place counts half in the check of the border.
_AGREES = 0.06
# A frame is shifted by at most this fraction of it against the middle frame, and zoomed by at most this factor; and by
# at most this fraction against the frame before it.
_MOST_SHIFT, _MOST_ZOOM, _MOST_ZOOM_STEP = 0.5, 2.0, 0.1


def grey_frames(clips: Tensor) -> Tensor:
    """Small grey frames.

    Args:
        clips: (batch, time, height, width, 3) uint8, or float in [0, 255].

    Returns:
        (batch, time, 48, columns) float32 in [0, 255], with about the aspect ratio of the frames.
    """
    height, width = clips.shape[2:4]
    time = ops.shape(clips)[1]  # unknown until run time in an exported model
    columns = 4 * max(2, round(GREY_HEIGHT * width / height / 4))  # so that it can be halved twice
    across = np.kron(_resize_weights(width, columns), LUMA).T  # (width * 3, columns)
    down = ops.convert_to_tensor(_resize_weights(height, GREY_HEIGHT)[None])
    grey = ops.matmul(ops.matmul(down, _rows_of_pixels(clips)), ops.convert_to_tensor(across.astype("float32")))
    return ops.reshape(grey, (-1, time, GREY_HEIGHT, columns))


def camera_motion(grey: Tensor) -> Tensor:
    """How the camera moved in each clip.

    Args:
        grey: (batch, time, height, width) float32, as from `grey_frames`.

    Returns:
        (batch, time, 3) float32: zoom, down, right. What is at place p of the middle frame, measured from the centre as
        fractions of the frame, is at zoom * p + (down, right) in this frame.
    """
    batch, time = ops.shape(grey)[:2]
    pairs = _merged(grey[:, :-1]), _merged(grey[:, 1:])
    sizes = [pairs]
    for _ in _ITERATIONS[1:]:
        sizes.insert(0, (_halve(sizes[0][0]), _halve(sizes[0][1])))
    one = ops.ones_like(pairs[0][:, 0, :1])
    motion = no_motion = ops.concatenate([one, one * 0.0, one * 0.0], axis=-1)
    brightness = one * 0.0
    for (first, second), iterations in zip(sizes, _ITERATIONS, strict=True):
        for _ in range(iterations):
            motion, brightness = _refine(motion, brightness, first, second)
    with_motion, without = (_agreement(*pairs, tried, _light(*sizes[-2], tried)) for tried in (motion, no_motion))
    gain = with_motion - without
    within_limits = ops.abs(motion[:, 0] - 1.0) < 0.99 * _MOST_ZOOM_STEP  # at the limit, the alignment has failed
    believed = ops.logical_and(gain > _LEAST_GAIN, within_limits)
    motion = ops.where(believed[:, None], motion, no_motion)
    return _from_middle(ops.reshape(motion, (batch, time - 1, 3)), time)


def without_motion(frames: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Frames as they would be without a motion.

    Args:
        frames: (n, height, width) float32.
        motion: (n, 3): zoom, down, right as fractions of the frame.

    Returns:
        (n, height, width) float32, in which the edge is repeated where nothing was filmed; and 1 where something was,
        else 0, in the same shape.
    """
    (rows, within_rows), (columns, within_columns) = (
        _warp_weights(length, motion[:, :1], motion[:, axis : axis + 1])
        for length, axis in ((frames.shape[1], 1), (frames.shape[2], 2))
    )
    shown = ops.matmul(ops.matmul(rows, frames), ops.transpose(columns, (0, 2, 1)))
    return shown, within_rows[:, :, None] * within_columns[:, None]


class _Fit(NamedTuple):
    """How far the second frames of pairs, without a motion and a change of light, are from the first.

    Attributes:
        error: (n, height, width) grey levels of the first frame, less those of the second.
        weight: (n, height, width) how much each place counts.
        slopes: (n, k, height, width) how the second frame changes with each unknown.
    """

    error: Tensor
    weight: Tensor
    slopes: Tensor


def _fit_to(first: Tensor, second: Tensor, motion: Tensor, light: Tensor) -> _Fit:
    """The fit of (n, height, width) frames, with contrast and brightness as unknowns.

    Args:
        first: the frames that the others should look like.
        second: the others.
        motion: (n, 3), as in `without_motion`.
        light: (n, 2): contrast, a factor, and brightness, in grey levels, that the second frames get.
    """
    shown, inside = without_motion(second, motion)
    relative = shown - ops.mean(second, axis=(1, 2), keepdims=True)
    lit = shown - relative + light[:, :1, None] * relative + light[:, 1:, None]
    error = first - lit
    floor = _contrast(first) + _NOISE
    weight = inside / floor / (1.0 + ops.square(error) / floor)
    return _Fit(error, weight, ops.stack([relative, ops.ones_like(relative)], axis=1))


def _refine(motion: Tensor, brightness: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Improve motions (n, 3) and brightness (n, 1) that make (n, height, width) `second` frames look like the `first`.

    Contrast is left as it is: as long as frames are not aligned, less of it always fits better.
    """
    height, width = first.shape[1:3]
    fit = _fit_to(first, second, motion, ops.concatenate([ops.ones_like(brightness), brightness], axis=-1))
    down, right = _gradients(first)
    from_centre = [ops.arange(length, dtype="float32") + (0.5 - length / 2) for length in (height, width)]
    outwards = down * from_centre[0][:, None] + right * from_centre[1]
    # How grey levels change with a zoom that moves the upper and lower edge by a pixel, and per pixel of shift.
    slopes = ops.stack([outwards / (height / 2), down, right], axis=1)
    step = _step(fit._replace(slopes=ops.concatenate([slopes, fit.slopes[:, 1:]], axis=1)))
    step = step * ops.convert_to_tensor([[2 / height, 1 / height, 1 / width, 1.0]])  # pixels -> fractions
    zoom = ops.clip(motion[:, :1] * (1.0 + step[:, :1]), 1.0 - _MOST_ZOOM_STEP, 1.0 + _MOST_ZOOM_STEP)
    return ops.concatenate([zoom, motion[:, 1:] + step[:, 1:3]], axis=-1), brightness + step[:, 3:]


def _step(fit: _Fit) -> Tensor:
    """(n, k): the change of the unknowns that makes the weighted squared error least, if it were linear in them."""
    unknowns, height, width = fit.slopes.shape[1:]
    slopes = ops.reshape(fit.slopes, (-1, unknowns, height * width))
    weighted = slopes * ops.reshape(fit.weight, (-1, 1, height * width))
    matrix = ops.matmul(weighted, ops.transpose(slopes, (0, 2, 1))) + _DAMPING * ops.eye(unknowns)
    pull = ops.matmul(weighted, ops.reshape(fit.error, (-1, height * width, 1)))
    # Gauss-Jordan elimination. Without pivoting, because the matrix is positive definite; a library's solver is slow
    # for so many small systems, or missing in an export's runtime.
    system = ops.concatenate([matrix, pull], axis=-1)
    for place in range(unknowns):
        here = ops.convert_to_tensor(np.eye(unknowns, dtype="float32")[place][:, None])
        row = system[:, place : place + 1] / system[:, place : place + 1, place : place + 1]
        system = system - (system[:, :, place : place + 1] - here) * row
    return system[:, :, unknowns]


def _light(first: Tensor, second: Tensor, motion: Tensor) -> Tensor:
    """(n, 2): the contrast and brightness with which frames, without a motion, look most like the first."""
    light = ops.concatenate([ops.ones_like(motion[:, :1]), ops.zeros_like(motion[:, :1])], axis=-1)
    for _ in range(_LIGHT_ITERATIONS):
        light = light + _step(_fit_to(first, second, motion, light))
        contrast = ops.clip(light[:, :1], 1.0 / _MOST_CONTRAST, _MOST_CONTRAST)
        light = ops.concatenate([contrast, light[:, 1:]], axis=-1)
    return light


def _agreement(first: Tensor, second: Tensor, motion: Tensor, light: Tensor) -> Tensor:
    """(n,): how much of the frames' border agrees with a motion, from 0 to 1. Places without contrast do not count."""
    height, width = first.shape[1:3]
    offsets = [np.abs((np.arange(length) + 0.5) / length - 0.5) for length in (height, width)]
    border = (np.maximum(offsets[0][:, None], offsets[1][None]) > 0.5 - _BORDER).astype("float32")
    fit, contrast = _fit_to(first, second, motion, light), _contrast(first)
    counts = ops.convert_to_tensor(border / border.sum()) * contrast / (contrast + _NOISE)
    counts = counts * ops.cast(fit.weight > 0.0, "float32")  # was filmed in both frames
    return ops.sum(counts / (1.0 + ops.square(fit.error) / (_AGREES * contrast + _NOISE)), axis=(1, 2))


def _from_middle(steps: Tensor, time: Any) -> Tensor:
    """(batch, time - 1, 3) motions from frame to frame -> (batch, time, 3) motions from the middle frame."""
    middle, limit = time // 2, math.log(_MOST_ZOOM)
    log_zoom = ops.cumsum(ops.pad(ops.log(steps[..., :1]), ((0, 0), (1, 0), (0, 0))), axis=1)
    zoom = ops.exp(ops.clip(log_zoom - log_zoom[:, middle : middle + 1], -limit, limit))
    # A shift of a later frame is one of the middle frame, zoomed.
    shift = zoom * ops.cumsum(ops.pad(steps[..., 1:] / zoom[:, 1:], ((0, 0), (1, 0), (0, 0))), axis=1)
    shift = ops.clip(shift - zoom * shift[:, middle : middle + 1], -_MOST_SHIFT, _MOST_SHIFT)
    return ops.concatenate([zoom, shift], axis=-1)


def _contrast(frames: Tensor) -> Tensor:
    """Squared gradients of (n, height, width) frames."""
    down, right = _gradients(frames)
    return ops.square(down) + ops.square(right)


def _gradients(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of (n, height, width) frames down and right, 0 at the edges."""
    down = ops.pad(frames[:, 2:] - frames[:, :-2], ((0, 0), (1, 1), (0, 0))) / 2.0
    right = ops.pad(frames[:, :, 2:] - frames[:, :, :-2], ((0, 0), (0, 0), (1, 1))) / 2.0
    return down, right


def _warp_weights(length: int, zoom: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """(n, length, length) weights of the source pixels in each pixel, and (n, length) whether its place was filmed."""
    pixel = ops.arange(length, dtype="float32")
    place = (pixel + 0.5) / length - 0.5
    source = (place * zoom + shift + 0.5) * length - 0.5
    inside = ops.cast(ops.logical_and(source > -0.5, source < length - 0.5), "float32")
    distance = ops.abs(pixel - ops.clip(source, 0.0, length - 1.0)[..., None])
    return ops.maximum(1.0 - distance, 0.0), inside


def _resize_weights(length: int, size: int) -> np.ndarray:
    """(size, length) weights of an antialiased bilinear resize."""
    step = length / size
    centre = (np.arange(size) + 0.5) * step - 0.5
    weights = np.maximum(1.0 - np.abs(np.arange(length)[None] - centre[:, None]) / max(step, 1.0), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")


def _rows_of_pixels(clips: Tensor) -> Tensor:
    """(batch * time, height, width * 3) float32."""
    height, width, channels = clips.shape[2:]
    return ops.cast(ops.reshape(clips, (-1, height, width * channels)), "float32")


def _merged(grey: Tensor) -> Tensor:
    """(batch, time, height, width) -> (batch * time, height, width)."""
    return ops.reshape(grey, (-1, *grey.shape[2:]))


def _halve(frames: Tensor) -> Tensor:
    """(n, height, width) -> (n, height / 2, width / 2), means of 2 x 2 pixels."""
    height, width = frames.shape[1:3]
    return ops.mean(ops.reshape(frames, (-1, height // 2, 2, width // 2, 2)), axis=(2, 4))
