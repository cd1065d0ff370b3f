"""Checks of what a model is given to train on. Values are looked at once, before the first step."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from hdc_keras.step.options import StepOptions

Tensor = Any
_WINDOWS = "windows of shape (batch, 2, time, height, width, 3) with pixels in 0..255"
_DEFAULT_BATCH = 32  # of Keras' `fit`


def require_windows_only(labels: Any, weights: Any = None) -> None:
    """Raise `ValueError` if there are labels or sample weights."""
    for name, value in (("labels", labels), ("sample weights", weights)):
        if value is not None:
            raise ValueError(f"expected only {_WINDOWS}, because the loss uses no labels. Received also: {name}.")


def require_first_batch(data: Any, batch_size: int | None, options: StepOptions) -> None:
    """Check training data before the first step: batch sizes, and the pixels of the first batch.

    Pixels of uint8 need no look. A generator or a distributed dataset gets none, because looking would use up its first
    batch.

    Args:
        data: what `fit` takes as `x`: an array, a tensor, a `tf.data.Dataset`, a `PyDataset`, or something else.
        batch_size: number of videos per step; Keras' default when `None`. Only for arrays and tensors.
        options: how a step treats a batch.

    Raises:
        ValueError: a batch is too small or cannot be divided into micro-batches, or pixels are not in 0..255.
    """
    if isinstance(data, np.ndarray) or ops.is_tensor(data):
        videos, size = len(data), batch_size or _DEFAULT_BATCH
        require_batch(min(size, videos), options)
        if videos > size and videos % size:
            require_batch(videos % size, options)
        require_pixels(data[:size])
        return
    for first in _first_batch(data):
        windows, labels, weights = keras.utils.unpack_x_y_sample_weight(first)
        require_windows_only(labels, weights)
        require_pixels(windows)


def _first_batch(data: Any) -> Iterator[Any]:
    """The first batch of a dataset that can be read again; nothing of others, or if all pixels are uint8."""
    if isinstance(data, keras.utils.PyDataset) and not getattr(data, "yields_uint8", False):
        yield data[0]
    elif hasattr(data, "element_spec") and hasattr(data, "take"):
        specs = data.element_spec if isinstance(data.element_spec, tuple | list) else [data.element_spec]
        if specs[0].dtype != np.uint8:
            yield from data.take(1)


def require_pixels(windows: Tensor) -> None:
    """Raise `ValueError` if the finite pixels of a batch are not in 0..255, or are in 0..1."""
    if keras.backend.standardize_dtype(windows.dtype) == "uint8":
        return
    pixels = ops.convert_to_numpy(ops.cast(windows, "float32"))
    pixels = pixels[np.isfinite(pixels)]
    if not pixels.size:
        return
    least, most = pixels.min(), pixels.max()
    if least < 0 or most > 255 or 0 < most <= 1:
        advice = " Multiply them by 255: the model itself divides by 255." if least >= 0 and 0 < most <= 1 else ""
        raise ValueError(f"expected {_WINDOWS}. Received: pixels in {least:.4g}..{most:.4g}.{advice}")


def require_batch(videos: Any, options: StepOptions) -> None:
    """Raise `ValueError` if a batch is too small, or cannot be divided into micro-batches.

    Args:
        videos: number of videos. Where TensorFlow does not know it before the step, the step checks that it is not 1.
        options: how a step treats a batch.
    """
    pieces = options.micro_batches
    least = 2 * pieces if options.accumulate == "plain" else max(2, pieces)
    if not isinstance(videos, int):
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.debugging.assert_greater_equal(videos, least, f"expected at least {least} videos in every batch")
        return
    if videos < least or videos % pieces:
        multiple = f", a multiple of micro_batches={pieces}" if pieces > 1 else ""
        raise ValueError(
            f"expected {_WINDOWS} and a batch of {least} or more videos{multiple}, because the other videos of a batch "
            f"are the negatives. Received: a batch of {videos}. Choose another `batch_size`, or leave out videos, so "
            "that the last batch is large enough too."
        )
