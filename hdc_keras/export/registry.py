"""Every export format by the name that `--format` uses."""

from hdc_keras.export.format import Format
from hdc_keras.export.keras_backbone import KERAS_BACKBONE
from hdc_keras.export.litert import LITERT
from hdc_keras.export.onnx import ONNX
from hdc_keras.export.saved_model import SAVED_MODEL

FORMATS: dict[str, Format] = {format.name: format for format in (SAVED_MODEL, ONNX, LITERT, KERAS_BACKBONE)}
