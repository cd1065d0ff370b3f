"""Export a pretrained network for another runtime, check it in that runtime, and describe it in a model card."""

from hdc_keras.export.job import Exported, export
from hdc_keras.export.registry import FORMATS

__all__ = ["FORMATS", "Exported", "export"]
