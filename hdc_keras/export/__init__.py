"""Export a pretrained network for another runtime, check it in that runtime, and describe it in a model card."""

from hdc_keras.export.job import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
