"""A backbone without batch norm: with it, the videos of a device or of a micro-batch would depend on each other."""

import keras

from hdc_keras.backbones.video_backbone import VideoBackbone, clip_input


class PlainConvolutions(VideoBackbone):
    """Four stages of one convolution each."""

    def __init__(self, **kwargs):
        clips, x = clip_input((None, None, None, 3), "float32")
        levels = {}
        for level, filters in zip(("P2", "P3", "P4", "P5"), (4, 6, 8, 10), strict=True):
            x = keras.layers.Conv3D(filters, 3, (1, 2, 2), padding="same", activation="tanh", name=f"{level}_conv")(x)
            levels[level] = x
        super().__init__(clips, levels, {"dtype": "float32"}, **kwargs)
