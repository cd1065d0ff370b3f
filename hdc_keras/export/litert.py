"""Export to LiteRT (formerly TensorFlow Lite), with built-in operations only."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.errors import ExportError
from hdc_keras.export.format import Format, Outputs
from hdc_keras.export.networks import Network, append_labels, appended_labels, classes_of
from hdc_keras.export.portable import freeze, with_flat_poolings
from hdc_keras.files import temporary_folder

_SIGNATURE = "serve"
_SCRIPT = f"""\
import numpy as np
from ai_edge_litert.interpreter import Interpreter

encode = Interpreter("FILE", num_threads=4).get_signature_runner("{_SIGNATURE}")
video = np.random.randint(0, 255, (1, 16, 240, 320, 3), dtype="uint8")  # RGB; any batch, length, height and width
outputs = encode(video=video)
print({{name: value.shape for name, value in outputs.items()}})
"""


_CLASS_SCRIPT = f"""\
import json
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter

classify = Interpreter("FILE", num_threads=4).get_signature_runner("{_SIGNATURE}")
labels = json.loads(zipfile.ZipFile("FILE").read("labels.json"))
video = np.random.randint(0, 255, (1, 16, 240, 320, 3), dtype="uint8")  # RGB; any batch, length, height and width
scores = classify(video=video)["scores"][0]
print(dict(zip(labels, scores.tolist())))
"""


def _write(network: Network, experiment: Experiment, path: Path) -> None:
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    with _flat_poolings(network):
        frozen = freeze(network)
    module = tf.Module()
    module.encode = tf.function(
        lambda video: dict(zip(frozen.output_names, frozen.function(video), strict=True)),
        input_signature=[tf.TensorSpec((None, None, None, None, 3), tf.uint8, name="video")],
    )
    with temporary_folder(path) as folder:
        # The converter keeps output names only if it reads a SavedModel.
        # Without gradients: that of swish refers to a part of the graph that was not frozen.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, str(folder), signatures={_SIGNATURE: module.encode}, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[_SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            converted = converter.convert()
        except ConverterError as error:
            cause = " ".join(str(error).split())[:500]
            raise ExportError(
                f"the backbone `{network.backbone.name}` cannot be converted to LiteRT: {cause}"
            ) from error
    path.write_bytes(converted)
    append_labels(path, classes_of(network))


@contextmanager
def _flat_poolings(network: Network) -> Iterator[None]:
    """LiteRT has no 3D pooling."""
    pyramid = network.pyramid
    network.pyramid = with_flat_poolings(pyramid)
    try:
        yield
    finally:
        network.pyramid = pyramid


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
    read_labels=appended_labels,
    script=_SCRIPT,
    class_script=_CLASS_SCRIPT,
    modules=("ai_edge_litert",),
    extra="litert",
    packages=("tensorflow", "ai-edge-litert"),
)
