"""`views.host_policy`: augmentation layers from keras-cv and Keras, applied to clips in tf.data.

These layers expect images and draw new random parameters for every image. To get one draw per clip, a clip is passed
to a layer as a single image. For layers that change colours, its frames are stacked vertically; for layers that move
or blur pixels, its frames become channels. This uses only the public interface of the layers.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from hdc_keras.config import HostLayer
from hdc_keras.errors import ConfigError, did_you_mean

# Layers that compute a pixel from the same pixel of the input and, in some cases, the colours of the whole image.
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
# Layers that compute a pixel only from pixels of the same channel.
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
    """Applies layers in sequence, each with one random draw per clip.

    Args:
        layers: names of layers, with arguments. A layer is taken from keras-cv if it exists there, otherwise from
            Keras.

    Raises:
        ConfigError: a name is not in `HOST_LAYERS`, or a layer does not accept its arguments.
    """

    def __init__(self, layers: Sequence[HostLayer]):
        built = [_build(layer) for layer in layers]
        self.layers = [layer for layer, _ in built]
        # Parallel calls of a Keras layer can read the same seed before either of them updates it, and then draw the
        # same parameters.
        self.is_parallel = not any(is_keras for _, is_keras in built)

    def __call__(self, clips: tf.Tensor) -> tf.Tensor:
        """Augment (clips, time, height, width, 3) uint8, with independent draws for each clip."""
        augmented = []
        for clip in tf.unstack(tf.cast(clips, tf.float32)):
            for layer in self.layers:
                clip = _augment(layer, clip)
            augmented.append(clip)
        return tf.cast(tf.clip_by_value(tf.round(tf.stack(augmented)), *_VALUE_RANGE), tf.uint8)


def _build(wanted: HostLayer) -> tuple[Any, bool]:
    """Create a layer. The second value is whether it comes from Keras instead of keras-cv."""
    import keras_cv  # Slow, so it is imported only if there is a policy.

    if wanted.layer not in HOST_LAYERS:
        raise ConfigError(
            f"`views.host_policy`: unsupported layer `{wanted.layer}`. A layer must work on clips and keep their shape."
            f"{did_you_mean(wanted.layer, HOST_LAYERS)} Supported: {', '.join(HOST_LAYERS)}."
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
            f"`views.host_policy`: {wanted.layer} does not accept {wanted.arguments}: {error}. Its signature is "
            f"{wanted.layer}{expected}."
        ) from error


def _augment(layer: Any, clip: tf.Tensor) -> tf.Tensor:
    """Apply one draw of a layer to a clip: (time, height, width, 3) float32 in [0, 255]."""
    name = type(layer).__name__
    if name == _RAND_AUGMENT:
        for _ in range(layer.augmentations_per_image):
            clip = _one_of(layer.layers, layer.rate, clip)
        return clip
    time, height, width, channels = clip.shape
    if name in _COLOUR:
        stacked = tf.reshape(clip, (1, time * height, width, channels))
        return tf.reshape(layer(stacked, **_training(layer)), clip.shape)
    stacked = tf.reshape(tf.transpose(clip, (1, 2, 0, 3)), (1, height, width, time * channels))
    augmented = tf.reshape(layer(stacked, **_training(layer)), (height, width, time, channels))
    return tf.transpose(augmented, (2, 0, 1, 3))


def _one_of(layers: Sequence[Any], rate: float, clip: tf.Tensor) -> tf.Tensor:
    """One step of keras-cv's RandAugment: with probability `rate`, apply one layer drawn at random."""
    branches = [partial(_augment, layer, clip) for layer in layers]
    drawn = tf.random.uniform((), 0, len(layers), tf.int32)
    applied = tf.random.uniform(()) <= rate
    return tf.cond(applied, lambda: tf.switch_case(drawn, branches), lambda: clip)


def _training(layer: Any) -> dict[str, bool]:
    return {"training": True} if "training" in inspect.signature(layer.call).parameters else {}
