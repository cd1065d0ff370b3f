"""3D convolutional networks and video transformers with stages P2 to P5, by name."""

from hdc_keras.backbones.c3d import C3D, C3DTiny
from hdc_keras.backbones.r2plus1d import R2Plus1D, R2Plus1D18, R2Plus1DTiny
from hdc_keras.backbones.registry import BACKBONES, build_backbone
from hdc_keras.backbones.resnet3d import (
    MC3,
    MC318,
    R3D,
    R3D10,
    R3D18,
    R3D34,
    MC3Tiny,
    R3DSmall,
    R3DSmallMotion,
    R3DTiny,
)
from hdc_keras.backbones.s3d import S3D, S3DTiny
from hdc_keras.backbones.video_backbone import VideoBackbone
from hdc_keras.backbones.video_vit import VideoMAEViTB, VideoMAEViTS, VideoMAEViTTiny, VideoViT
from hdc_keras.backbones.x3d import X3D, X3DS, X3DTiny

__all__ = [
    "BACKBONES",
    "C3D",
    "MC3",
    "MC318",
    "R3D",
    "R3D10",
    "R3D18",
    "R3D34",
    "S3D",
    "X3D",
    "X3DS",
    "C3DTiny",
    "MC3Tiny",
    "R2Plus1D",
    "R2Plus1D18",
    "R2Plus1DTiny",
    "R3DSmall",
    "R3DSmallMotion",
    "R3DTiny",
    "S3DTiny",
    "VideoBackbone",
    "VideoMAEViTB",
    "VideoMAEViTS",
    "VideoMAEViTTiny",
    "VideoViT",
    "X3DTiny",
    "build_backbone",
]
