"""A picture of the views: shows what augmentation does to your videos before you train on them for days."""

import io
from typing import Any

import numpy as np
from keras import ops

from hdc_keras.views.generator import ViewGenerator

Tensor = Any

GALLERY_VIDEOS = 4
_FRAMES = 8
# Views smaller than this many pixels are enlarged.
_LEAST_SIDE = 64
_DPI = 100
_MARGIN_INCHES = 1.4


def draw_gallery(generator: ViewGenerator, windows: Tensor) -> bytes:
    """Draw the views of the first four videos, with one row per view, labelled on the left, and one column per frame.

    Args:
        generator: makes the views.
        windows: (batch, 2, time, height, width, 3) uint8.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    windows = windows[:GALLERY_VIDEOS]
    views = ops.convert_to_numpy(generator(windows))
    names = generator.view_names
    by_video = views.reshape(len(names), -1, *views.shape[1:]).swapaxes(0, 1)
    shown = np.linspace(0, views.shape[1] - 1, min(_FRAMES, views.shape[1])).round().astype(int)
    rows = by_video[:, :, shown].reshape(-1, len(shown), *views.shape[2:])
    size = views.shape[2]
    scale = -(-_LEAST_SIDE // size)
    # One image of all frames, with white lines between frames and black lines between videos.
    rows = np.pad(rows, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=1.0)
    image = rows.transpose(0, 2, 1, 3, 4).reshape(len(rows) * (size + 2), -1, 3)
    height, width = image.shape[:2]
    inches = width * scale / _DPI
    whole = inches + _MARGIN_INCHES
    figure = Figure(figsize=(whole, height * scale / _DPI), dpi=_DPI)
    axes = figure.add_axes((_MARGIN_INCHES / whole, 0, inches / whole, 1))
    axes.imshow(image.astype(np.float32), interpolation="nearest", aspect="auto")
    axes.set_yticks((np.arange(len(rows)) + 0.5) * (size + 2), list(names) * len(by_video))
    axes.set_xticks([])
    axes.tick_params(length=0)
    for video in range(1, len(by_video)):
        axes.axhline(video * len(names) * (size + 2) - 0.5, color="black")
    axes.spines[:].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
