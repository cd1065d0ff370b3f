"""How the camera moved in a clip, found from its frames, on the device, on any backend.

Neighbouring frames are aligned by the method of Lucas and Kanade (IJCAI 1981), from coarse to fine, for a shift and a
zoom. Two weights keep what is filmed from being taken for the camera: each place counts by its own contrast, so that a
person with strong edges does not outvote a faint background, and places that do not follow the common motion count
little. A motion is believed only if the border of the frame agrees. All of this is our choice.
"""

from typing import Any

import numpy as np
from keras import ops

Tensor = Any

# Frames are compared at this height in pixels, and at half and a quarter of it.
GREY_HEIGHT = 48
# Iterations at each size, from coarse to fine.
_ITERATIONS = (3, 2, 1)
# Luma of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Squared gradient, in grey levels per pixel, below which a place is taken for noise.
_NOISE = 9.0
# Keeps the equations solvable where nothing has contrast. In places of full weight.
_DAMPING = 1.5
# The border that must agree with a motion, as a fraction of the frame on each side, and by how much more of it must
# agree than with no motion. With a camera that stands still, at most 0.01 does.
_BORDER, _LEAST_GAIN = 0.2, 0.02
# Squared distance in pixels at which a place counts half in the check of the border.
_AGREES = 0.06
# The camera moves by at most this fraction of the frame within a clip, and zooms by at most this between two frames.
_MOST_SHIFT, _MOST_ZOOM = 0.5, 0.1


def grey_frames(clips: Tensor) -> Tensor:
    """Small grey frames.

    Args:
        clips: (batch, time, height, width, 3) uint8, or float in [0, 255].

    Returns:
        (batch, time, 48, columns) float32 in [0, 255], with the aspect ratio of the frames.
    """
    height, width = clips.shape[2:4]
    time = ops.shape(clips)[1]  # unknown until run time in an exported model
    columns = 4 * max(1, round(GREY_HEIGHT * width / height / 4))
    across = np.kron(_resize_weights(width, columns), _LUMA).T  # (width * 3, columns)
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
    finest = (_pairs(grey[:, :-1]), _pairs(grey[:, 1:]))
    sizes = [finest]
    for _ in _ITERATIONS[1:]:
        sizes.insert(0, tuple(map(_halve, sizes[0])))
    motion = ops.stack([ops.ones_like(finest[0][:, 0, 0]), *[ops.zeros_like(finest[0][:, 0, 0])] * 2], axis=-1)
    for (first, second), iterations in zip(sizes, _ITERATIONS, strict=True):
        motion = _refine(motion, first, second, iterations)
    motion = ops.where(_border_agrees(motion, *finest)[:, None], motion, ops.convert_to_tensor([[1.0, 0.0, 0.0]]))
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
        _shift_weights(length, motion[:, :1], motion[:, axis : axis + 1])
        for length, axis in ((frames.shape[1], 1), (frames.shape[2], 2))
    )
    shown = ops.matmul(ops.matmul(rows, frames), ops.transpose(columns, (0, 2, 1)))
    return shown, within_rows[:, :, None] * within_columns[:, None]


def _refine(motion: Tensor, first: Tensor, second: Tensor, iterations: int) -> Tensor:
    """Improve motions (n, 3) that make (n, height, width) `second` frames look like the `first`."""
    height, width = first.shape[1:3]
    down, right = _gradients(first)
    contrast = ops.square(down) + ops.square(right)
    from_centre = [ops.arange(length, dtype="float32") + (0.5 - length / 2) for length in (height, width)]
    outwards = down * from_centre[0][:, None] + right * from_centre[1]
    # How grey levels change per pixel of shift, and with a zoom that moves the upper and lower edge by one pixel.
    slopes = ops.reshape(ops.stack([outwards / (height / 2), down, right], axis=1), (-1, 3, height * width))
    scale = ops.convert_to_tensor([[2 / height, 1 / height, 1 / width]])  # pixels -> fractions
    for _ in range(iterations):
        shown, inside = without_motion(second, motion)
        error = first - shown
        weight = inside / (contrast + _NOISE) / (1.0 + ops.square(error) / (contrast + _NOISE))
        weighted = slopes * ops.reshape(weight, (-1, 1, height * width))
        matrix = ops.matmul(weighted, ops.transpose(slopes, (0, 2, 1))) + _DAMPING * ops.eye(3)
        pull = ops.matmul(weighted, ops.reshape(error, (-1, height * width, 1)))[..., 0]
        step = _solve(matrix, pull) * scale
        zoom = motion[:, :1] * (1.0 + step[:, :1])
        motion = ops.concatenate(
            [ops.clip(zoom, 1.0 - _MOST_ZOOM, 1.0 + _MOST_ZOOM), motion[:, 1:] + step[:, 1:]], axis=-1
        )
    return motion


def _border_agrees(motion: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(n,) whether more of the frames' border agrees with a motion than with none."""
    height, width = first.shape[1:3]
    offsets = [np.abs((np.arange(length) + 0.5) / length - 0.5) for length in (height, width)]
    border = (np.maximum(offsets[0][:, None], offsets[1][None]) > 0.5 - _BORDER).astype("float32")
    share_of_border = ops.convert_to_tensor(border / border.sum())
    down, right = _gradients(first)
    contrast = ops.square(down) + ops.square(right)
    counts = share_of_border * contrast / (contrast + _NOISE)

    def agreeing(shown: Tensor, inside: Tensor | float) -> Tensor:
        return ops.sum(counts * inside / (1.0 + ops.square(first - shown) / (_AGREES * contrast + _NOISE)), axis=(1, 2))

    return agreeing(*without_motion(second, motion)) - agreeing(second, 1.0) > _LEAST_GAIN


def _from_middle(steps: Tensor, time: Any) -> Tensor:
    """(batch, time - 1, 3) motions from frame to frame -> (batch, time, 3) motions from the middle frame."""
    zoom = ops.exp(ops.cumsum(ops.pad(ops.log(steps[..., :1]), ((0, 0), (1, 0), (0, 0))), axis=1))
    shift = zoom * ops.cumsum(ops.pad(steps[..., 1:] / zoom[:, 1:], ((0, 0), (1, 0), (0, 0))), axis=1)
    middle = time // 2
    ratio = zoom / zoom[:, middle : middle + 1]
    shift = ops.clip(shift - ratio * shift[:, middle : middle + 1], -_MOST_SHIFT, _MOST_SHIFT)
    return ops.concatenate([ratio, shift], axis=-1)


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Solve symmetric 3 x 3 systems, (n, 3, 3) and (n, 3), by cofactors: a solver for so few is slow or missing."""
    a, b, c, d, e, f = (matrix[:, row, column] for row, column in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
    x, y, z = ops.unstack(vector, num=3, axis=-1)
    first, second, third = d * f - e * e, c * e - b * f, b * e - c * d
    fifth, sixth, ninth = a * f - c * c, b * c - a * e, a * d - b * b
    solution = [
        first * x + second * y + third * z,
        second * x + fifth * y + sixth * z,
        third * x + sixth * y + ninth * z,
    ]
    return ops.stack(solution, axis=-1) / (a * first + b * second + c * third)[:, None]


def _gradients(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of (n, height, width) frames down and right, 0 at the edges."""
    down = ops.pad(frames[:, 2:] - frames[:, :-2], ((0, 0), (1, 1), (0, 0))) / 2.0
    right = ops.pad(frames[:, :, 2:] - frames[:, :, :-2], ((0, 0), (0, 0), (1, 1))) / 2.0
    return down, right


def _shift_weights(length: int, zoom: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
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


def _pairs(grey: Tensor) -> Tensor:
    """(batch, time, height, width) -> (batch * time, height, width)."""
    return ops.reshape(grey, (-1, *grey.shape[2:]))


def _halve(frames: Tensor) -> Tensor:
    """(n, height, width) -> (n, height / 2, width / 2), means of 2 x 2 pixels."""
    height, width = frames.shape[1:3]
    return ops.mean(ops.reshape(frames, (-1, height // 2, 2, width // 2, 2)), axis=(2, 4))
