"""What part of each frame crops are taken from: a square round what moves, held still against the camera's motion."""

from typing import Any

from keras import ops

from hdc_keras.views.camera import camera_motion, grey_frames, without_motion

Tensor = Any

# Keeps what is divided by the amount of motion defined where nothing moves. In grey levels of 255.
_LEAST_MOTION = 1e-3
# The share of motion in one place at which the square is half-way between that place and the middle of the frame (our
# choice).
_TRUSTED_SHARE = 0.2


def framing(clips: Tensor, focus: float | None, steady: bool) -> Tensor:
    """The part of each frame that crops are taken from.

    Args:
        clips: (batch, time, height, width, 3) uint8, or float in [0, 255].
        focus: side of the square round what moves, as a fraction of the frame's shorter side; the whole frame when
            `None`.
        steady: whether the part moves with the camera, so that what stands still is seen to stand still.

    Returns:
        (batch, time, 4) float32, or (batch, 1, 4) for all frames of a clip alike: top, left, height, width as
        fractions of the frame. With `steady`, parts may reach over the frame's edge.
    """
    frame_size = clips.shape[2:4]
    grey = grey_frames(clips)
    motion = camera_motion(grey) if steady else None
    if focus is None:
        square = ops.convert_to_tensor([[0.0, 0.0, 1.0, 1.0]]) + ops.zeros_like(grey[:, 0, 0, :1])
    else:
        square = _square_round(_what_moves(grey, motion), focus, frame_size)
    if motion is None:
        return square[:, None]
    zoom, shift = motion[..., :1], motion[..., 1:]
    start, extent = square[:, None, :2], square[:, None, 2:]
    return ops.concatenate([zoom * (start - 0.5) + shift + 0.5, zoom * extent], axis=-1)


def within(outer: Tensor, box: Tensor) -> Tensor:
    """(batch, 4) boxes given as fractions of (batch, time, 4) `outer` boxes, as fractions of the frame."""
    start, extent = box[:, None, :2], box[:, None, 2:]
    return ops.concatenate([outer[..., :2] + outer[..., 2:] * start, outer[..., 2:] * extent], axis=-1)


def _what_moves(grey: Tensor, motion: Tensor | None) -> Tensor:
    """Absolute differences between neighbouring frames: (batch, time, ...) -> (batch, time - 1, ...)."""
    if motion is None:
        return ops.abs(grey[:, 1:] - grey[:, :-1])
    shown, filmed = without_motion(ops.reshape(grey, (-1, *grey.shape[2:])), ops.reshape(motion, (-1, 3)))
    shown, filmed = ops.reshape(shown, ops.shape(grey)), ops.reshape(filmed, ops.shape(grey))
    return ops.abs(shown[:, 1:] - shown[:, :-1]) * filmed[:, 1:] * filmed[:, :-1]


def _square_round(moved: Tensor, focus: float, frame_size: tuple[int, int]) -> Tensor:
    """The square round what moves (our choice).

    Its centre is the centre of gravity of the differences, summed over the clip, as far as they exceed twice their mean
    over the frame. The smaller the share that does, the nearer is the square to the middle of the frame, where what is
    filmed mostly is. The square stays within the frame. Frames between which everything changes, as at a cut, count
    less.

    Args:
        moved: (batch, time - 1, rows, columns) absolute differences between neighbouring frames, in grey levels.
        focus: as in `framing`.
        frame_size: (height, width) of the frames in pixels.

    Returns:
        (batch, 4) float32: top, left, height, width as fractions of the frame.
    """
    amounts = ops.mean(moved, axis=(2, 3), keepdims=True)
    overall = ops.sum(amounts, axis=1, keepdims=True) / ops.maximum(ops.cast(ops.shape(moved)[1], "float32"), 1.0)
    moved = ops.sum(moved * overall / ops.maximum(overall + amounts, _LEAST_MOTION), axis=1)
    everywhere = ops.sum(moved, axis=(1, 2))
    standing_out = ops.maximum(moved - 2.0 * ops.mean(moved, axis=(1, 2), keepdims=True), 0.0)
    total = ops.sum(standing_out, axis=(1, 2))
    share = total / ops.maximum(everywhere, _LEAST_MOTION)
    trust = ops.square(share) / (ops.square(share) + _TRUSTED_SHARE**2)
    box = []
    for axis, length, other in ((0, frame_size[0], 2), (1, frame_size[1], 1)):
        count = standing_out.shape[axis + 1]
        places = (ops.arange(count, dtype="float32") + 0.5) / count
        centre = ops.sum(ops.sum(standing_out, axis=other) * places, axis=1) / ops.maximum(total, _LEAST_MOTION)
        centre = trust * centre + (1.0 - trust) * 0.5
        extent = focus * min(frame_size) / length
        box.append((ops.clip(centre - extent / 2, 0.0, 1.0 - extent), ops.full_like(centre, extent)))
    return ops.stack([start for start, _ in box] + [extent for _, extent in box], axis=-1)
