"""Export to LiteRT (formerly TensorFlow Lite), with built-in operations only."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.errors import ExportError
from hdc_keras.export.format import Format, Outputs
from hdc_keras.export.portable import freeze, with_flat_poolings
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.files import temporary_folder
from hdc_keras.model import HDC

_SIGNATURE = "serve"
_SCRIPT = f"""\
import numpy as np
from ai_edge_litert.interpreter import Interpreter

encode = Interpreter("FILE", num_threads=4).get_signature_runner("{_SIGNATURE}")
video = np.random.randint(0, 255, (1, 16, 240, 320, 3), dtype="uint8")  # RGB; any batch, length, height and width
outputs = encode(video=video)
print({{name: value.shape for name, value in outputs.items()}})
"""


def _write(model: HDC, experiment: Experiment, path: Path) -> None:
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    encoder = ClipEncoder(model, experiment.data.decode_size)
    encoder.pyramid = with_flat_poolings(encoder.pyramid)  # LiteRT has no 3D pooling.
    frozen = freeze(encoder)
    module = tf.Module()
    module.encode = tf.function(
        lambda video: dict(zip(frozen.output_names, frozen.function(video), strict=True)),
        input_signature=[tf.TensorSpec((None, None, None, None, 3), tf.uint8, name="video")],
    )
    with temporary_folder(path) as folder:
        # The converter keeps output names only if it reads a SavedModel.
        tf.saved_model.save(module, str(folder), signatures={_SIGNATURE: module.encode})
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[_SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            converted = converter.convert()
        except ConverterError as error:
            cause = " ".join(str(error).split())[:500]
            raise ExportError(f"the backbone `{model.backbone.name}` cannot be converted to LiteRT: {cause}") from error
    path.write_bytes(converted)


def _open(path: Path) -> Callable[[np.ndarray], Outputs]:
    from ai_edge_litert.interpreter import Interpreter

    encode = Interpreter(str(path), num_threads=os.cpu_count()).get_signature_runner(_SIGNATURE)
    return lambda video: encode(video=video)


LITERT = Format(
    name="litert",
    file_name="model.tflite",
    summary="A LiteRT (TensorFlow Lite) model for phones and small devices, with float32 weights and built-in "
    "operations only.",
    takes_video=True,
    write=_write,
    open=_open,
    script=_SCRIPT,
    modules=("ai_edge_litert",),
    extra="litert",
    packages=("tensorflow", "ai-edge-litert"),
)
