"""Self-supervised video pretraining in Keras 3: hierarchically decoupled spatial-temporal contrast (HDC).

Names are imported on first use, so `import hdc_keras` is fast and loads no backend.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hdc_keras.version import __version__

# TensorFlow does not use oneDNN on CPUs without AVX-512, although it makes 3D convolutions faster there too
# (docs/performance.md). The variable must be set before TensorFlow is imported; a value that the user has set is kept.
if "tensorflow" not in sys.modules:
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

if TYPE_CHECKING:
    from hdc_keras.backbones import R3D, R3D18, R3DTiny, VideoBackbone
    from hdc_keras.config import Experiment, load_experiment, preset
    from hdc_keras.model import HDC
    from hdc_keras.pretrained import load

_HOME = {
    "HDC": "hdc_keras.model",
    "R3D": "hdc_keras.backbones",
    "R3D18": "hdc_keras.backbones",
    "R3DTiny": "hdc_keras.backbones",
    "VideoBackbone": "hdc_keras.backbones",
    "load": "hdc_keras.pretrained",
    "Experiment": "hdc_keras.config",
    "load_experiment": "hdc_keras.config",
    "preset": "hdc_keras.config",
}
_MODULES = (
    "backbones",
    "config",
    "data",
    "evaluation",
    "export",
    "features",
    "finetuning",
    "model",
    "objective",
    "probes",
    "report",
    "results",
    "runs",
    "step",
    "training",
    "views",
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"hdc_keras.{name}")
    raise AttributeError(f"module 'hdc_keras' has no attribute {name!r}")


__all__ = [
    "HDC",
    "R3D",
    "R3D18",
    "Experiment",
    "R3DTiny",
    "VideoBackbone",
    "__version__",
    "load",
    "load_experiment",
    "preset",
]
