"""Hand a pretrained network on: written for another runtime, read back there, compared, and described in a card."""

from hdc_keras.export.job import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
