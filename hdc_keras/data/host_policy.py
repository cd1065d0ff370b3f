"""`views.host_policy`: augmentation layers of keras-cv and Keras, applied to clips in tf.data.

Those layers are made for images and draw anew for every image. A clip gets one draw because it is shown to them as one
image: layers that change colours see its frames under each other, and layers that move or mix pixels see its frames as
further channels. That needs nothing but the layers' public interface.
"""

import difflib
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from hdc_keras.config import HostLayer
from hdc_keras.errors import ConfigError

# A pixel's result depends on its own colour and, for some, on all colours of the image.
_COLOUR = frozenset(
    [
        "AutoContrast",
        "ChannelShuffle",
        "Equalization",
        "Posterization",
        "RandomBrightness",
        "RandomChannelShift",
        "RandomColorDegeneration",
        "RandomColorJitter",
        "RandomContrast",
        "RandomGrayscale",
        "RandomHue",
        "RandomInvert",
        "RandomPosterization",
        "RandomSaturation",
        "Solarization",
    ]
)
# A pixel's result depends on pixels of its own channel alone.
_GEOMETRIC = frozenset(
    [
        "GridMask",
        "RandomCutout",
        "RandomFlip",
        "RandomGaussianBlur",
        "RandomPerspective",
        "RandomRotation",
        "RandomSharpness",
        "RandomShear",
        "RandomTranslation",
        "RandomZoom",
    ]
)
_RAND_AUGMENT = "RandAugment"
HOST_LAYERS = (*sorted(_COLOUR | _GEOMETRIC), _RAND_AUGMENT)
_VALUE_RANGE = (0, 255)


class HostPolicy:
    """Layers one after the other, each with one draw for a clip.

    Args:
        layers: names, with arguments. A layer is keras-cv's where it has one of that name, and else Keras'.

    Raises:
        ConfigError: a name is not among `HOST_LAYERS`, or a layer does not take its arguments.
    """

    def __init__(self, layers: Sequence[HostLayer]):
        built = [_build(layer) for layer in layers]
        self.layers = [layer for layer, _ in built]
        # Parallel calls of a Keras layer read one seed before either has moved it on, and draw the same.
        self.is_parallel = not any(is_keras for _, is_keras in built)

    def __call__(self, clips: tf.Tensor) -> tf.Tensor:
        """Augment (clips, time, height, width, 3) uint8; each clip has draws of its own."""
        augmented = []
        for clip in tf.unstack(tf.cast(clips, tf.float32)):
            for layer in self.layers:
                clip = _augment(layer, clip)
            augmented.append(clip)
        return tf.cast(tf.clip_by_value(tf.round(tf.stack(augmented)), *_VALUE_RANGE), tf.uint8)


def _build(wanted: HostLayer) -> tuple[Any, bool]:
    """The layer, and whether it is Keras' own."""
    import keras_cv  # heavy, so only where there is a policy

    if wanted.layer not in HOST_LAYERS:
        near = difflib.get_close_matches(wanted.layer, HOST_LAYERS, 1)
        raise ConfigError(
            f"`views.host_policy`: there is no layer `{wanted.layer}` that keeps a clip's shape and works on clips."
            + (f" Did you mean `{near[0]}`?" if near else "")
            + f" Known: {', '.join(HOST_LAYERS)}."
        )
    is_keras = not hasattr(keras_cv.layers, wanted.layer)
    layer_class = getattr(keras.layers if is_keras else keras_cv.layers, wanted.layer)
    takes_range = "value_range" in inspect.signature(layer_class.__init__).parameters
    arguments = ({"value_range": _VALUE_RANGE} if takes_range else {}) | wanted.arguments
    try:
        return layer_class(**arguments), is_keras
    except (TypeError, ValueError) as error:
        expected = inspect.signature(layer_class.__init__)
        raise ConfigError(
            f"`views.host_policy`: {wanted.layer} does not take {wanted.arguments}: {error}. It is {wanted.layer}"
            f"{expected}."
        ) from error


def _augment(layer: Any, clip: tf.Tensor) -> tf.Tensor:
    """One draw of a layer for a clip: (time, height, width, 3) float32 in [0, 255]."""
    name = type(layer).__name__
    if name == _RAND_AUGMENT:
        for _ in range(layer.augmentations_per_image):
            clip = _one_of(layer.layers, layer.rate, clip)
        return clip
    time, height, width, channels = clip.shape
    if name in _COLOUR:
        tall = tf.reshape(clip, (1, time * height, width, channels))
        return tf.reshape(layer(tall, **_training(layer)), clip.shape)
    deep = tf.reshape(tf.transpose(clip, (1, 2, 0, 3)), (1, height, width, time * channels))
    augmented = tf.reshape(layer(deep, **_training(layer)), (height, width, time, channels))
    return tf.transpose(augmented, (2, 0, 1, 3))


def _one_of(layers: Sequence[Any], rate: float, clip: tf.Tensor) -> tf.Tensor:
    """RandAugment's step, as keras-cv does it for an image: with a probability of `rate`, one layer drawn at random."""
    branches = [partial(_augment, layer, clip) for layer in layers]
    drawn = tf.random.uniform((), 0, len(layers), tf.int32)
    applied = tf.random.uniform(()) <= rate
    return tf.cond(applied, lambda: tf.switch_case(drawn, branches), lambda: clip)


def _training(layer: Any) -> dict[str, bool]:
    return {"training": True} if "training" in inspect.signature(layer.call).parameters else {}
