"""A picture of the views, to see what augmentation does to one's own videos before training on them for days."""

from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from hdc_keras.views.generator import ViewGenerator

Tensor = Any

GALLERY_VIDEOS = 4
_FRAMES = 8


def save_gallery(generator: ViewGenerator, windows: Tensor, path: Path) -> tuple[str, ...]:
    """Draw the views of the first four videos: a row a view, in the order of the result, and a column a frame.

    Args:
        generator: makes the views.
        windows: (batch, 2, time, height, width, 3) uint8.
        path: the PNG file to write.

    Returns:
        Names of the rows; they repeat for each video.
    """
    # Here, because its import takes seconds.
    from keras_cv.visualization import plot_image_gallery

    windows = windows[:GALLERY_VIDEOS]
    views = ops.convert_to_numpy(generator(windows))
    names = generator.view_names
    by_video = views.reshape(len(names), -1, *views.shape[1:]).swapaxes(0, 1)
    shown = np.linspace(0, views.shape[1] - 1, min(_FRAMES, views.shape[1])).round().astype(int)
    images = 255.0 * by_video[:, :, shown].reshape(-1, *views.shape[2:])
    plot_image_gallery(
        images, value_range=(0, 255), rows=len(images) // len(shown), cols=len(shown), scale=1, path=str(path)
    )
    return names
