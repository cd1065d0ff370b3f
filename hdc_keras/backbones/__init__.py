"""3D networks with stages P2 to P5, by name."""

import difflib
from collections.abc import Callable
from typing import Any

from hdc_keras.backbones.resnet3d import R3D, R3D18, R3DTiny
from hdc_keras.backbones.video_backbone import VideoBackbone
from hdc_keras.errors import ConfigError

BACKBONES: dict[str, Callable[..., VideoBackbone]] = {"r3d18": R3D18, "r3d_tiny": R3DTiny}


def build_backbone(name: str, **kwargs: Any) -> VideoBackbone:
    """A backbone with random weights by its name in `BACKBONES`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, 1)
        raise ConfigError(
            f"`model.backbone`: there is no backbone `{name}`."
            + (f" Did you mean `{near[0]}`?" if near else "")
            + f" Known: {', '.join(BACKBONES)}."
        )
    return BACKBONES[name](**kwargs)


__all__ = ["BACKBONES", "R3D", "R3D18", "R3DTiny", "VideoBackbone", "build_backbone"]
