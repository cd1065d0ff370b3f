"""Every backbone by the name that configs use. A new one also needs its name in `config.BackboneName`."""

from collections.abc import Callable
from typing import Any

from hdc_keras.backbones.c3d import C3D, C3DTiny
from hdc_keras.backbones.r2plus1d import R2Plus1D18, R2Plus1DTiny
from hdc_keras.backbones.resnet3d import MC318, R3D10, R3D18, R3D34, MC3Tiny, R3DSmall, R3DSmallMotion, R3DTiny
from hdc_keras.backbones.s3d import S3D, S3DTiny
from hdc_keras.backbones.video_backbone import VideoBackbone
from hdc_keras.backbones.video_vit import VideoMAEViTB, VideoMAEViTS, VideoMAEViTTiny
from hdc_keras.backbones.x3d import X3DS, X3DTiny
from hdc_keras.errors import ConfigError, did_you_mean

BACKBONES: dict[str, Callable[..., VideoBackbone]] = {
    "r3d18": R3D18,
    "r3d34": R3D34,
    "r3d10": R3D10,
    "r3d_small": R3DSmall,
    "r3d_small_motion": R3DSmallMotion,
    "r3d_tiny": R3DTiny,
    "mc3_18": MC318,
    "mc3_tiny": MC3Tiny,
    "r2plus1d18": R2Plus1D18,
    "r2plus1d_tiny": R2Plus1DTiny,
    "c3d": lambda **kwargs: C3D(**{"name": "c3d", **kwargs}),
    "c3d_tiny": C3DTiny,
    "s3d": lambda **kwargs: S3D(**{"name": "s3d", **kwargs}),
    "s3d_tiny": S3DTiny,
    "x3d_s": X3DS,
    "x3d_tiny": X3DTiny,
    "videomae_vit_s": VideoMAEViTS,
    "videomae_vit_b": VideoMAEViTB,
    "videomae_vit_tiny": VideoMAEViTTiny,
}


def build_backbone(name: str, /, **kwargs: Any) -> VideoBackbone:
    """Build a backbone with random weights.

    Args:
        name: a key of `BACKBONES`.
        **kwargs: constructor arguments, such as `input_shape`, `dtype` and `name`.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in BACKBONES:
        raise ConfigError(
            f"`model.backbone`: unknown backbone `{name}`.{did_you_mean(name, BACKBONES)} "
            f"Known: {', '.join(BACKBONES)}."
        )
    return BACKBONES[name](**kwargs)
