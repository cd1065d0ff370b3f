"""Export to ONNX: tf2onnx converts the frozen TensorFlow graph."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.errors import ExportError
from hdc_keras.export.format import Format, Outputs
from hdc_keras.export.networks import LABELS, Network, classes_of
from hdc_keras.export.portable import freeze

# Our choice: supported by ONNX Runtime since 1.14 (2023).
_OPSET = 18
_AXES = ("batch", "time", "height", "width")

_SCRIPT = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FILE", providers=["CPUExecutionProvider"])
video = np.random.randint(0, 255, (1, 16, 240, 320, 3), dtype="uint8")  # RGB; any batch, length, height and width
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, {"video": video})))
print({name: value.shape for name, value in outputs.items()})
"""


_CLASS_SCRIPT = """\
import json

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FILE", providers=["CPUExecutionProvider"])
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
video = np.random.randint(0, 255, (1, 16, 240, 320, 3), dtype="uint8")  # RGB; any batch, length, height and width
(scores,) = session.run(["scores"], {"video": video})
print(dict(zip(labels, scores[0].tolist())))
"""


def _write(network: Network, experiment: Experiment, path: Path) -> None:
    import onnx
    import tf2onnx

    _convert_erfc()
    frozen = freeze(network)
    inputs = [tensor.name for tensor in frozen.function.inputs]
    outputs = [tensor.name for tensor in frozen.function.outputs]
    with _no_warnings("tensorflow", "tf2onnx"):
        # Not `from_function`, which the ONNX export of Keras uses: it turns constants of a layer into model inputs.
        converted, _ = tf2onnx.convert.from_graph_def(
            frozen.function.graph.as_graph_def(),
            name=network.backbone.name,
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=dict(zip([*inputs, *outputs], ["video", *frozen.output_names], strict=True)),
            opset=_OPSET,
        )
    _name_axes(converted.graph.input[0], _AXES)
    for output in converted.graph.output:
        _name_axes(output, _AXES[:1])
    if classes := classes_of(network):
        onnx.helper.set_model_props(converted, {LABELS: json.dumps(classes)})
    try:
        onnx.checker.check_model(converted)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the backbone `{network.backbone.name}` cannot be converted to ONNX: {error}") from error
    onnx.save(converted, path)


def _convert_erfc() -> None:
    """Teach tf2onnx the operation Erfc, of which TensorFlow composes GELU: erfc(x) = 1 - erf(x)."""
    from tf2onnx.handler import tf_op
    from tf2onnx.utils import make_name

    class ComplementaryErrorFunction:
        @classmethod
        def version_9(cls, graph: Any, node: Any, **_: Any) -> None:
            shapes, dtypes = node.output_shapes, node.output_dtypes
            one = graph.make_const(make_name("one"), np.float32(1))
            erf = graph.make_node("Erf", [node.input[0]], shapes=shapes, dtypes=dtypes)
            graph.remove_node(node.name)
            inputs = [one.output[0], erf.output[0]]
            graph.make_node("Sub", inputs, name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes)

    tf_op("Erfc")(ComplementaryErrorFunction)


def _name_axes(value: Any, names: tuple[str, ...]) -> None:
    """Name the free axes, which the converter only numbers."""
    for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
        axis.dim_param = name


@contextmanager
def _no_warnings(*loggers: str) -> Iterator[None]:
    """Silence deprecation warnings that tf2onnx triggers in TensorFlow: users of `export` can do nothing about them."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _open(path: Path) -> Callable[[np.ndarray], Outputs]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda video: dict(zip(names, session.run(names, {"video": video}), strict=True))


def _read_labels(path: Path) -> list[str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    labels: list[str] = json.loads(session.get_modelmeta().custom_metadata_map.get(LABELS, "[]"))
    return labels


ONNX = Format(
    name="onnx",
    file_name="model.onnx",
    summary=f"An ONNX model of operator set {_OPSET}: runs in ONNX Runtime 1.14 and later, and in other ONNX runtimes.",
    takes_video=True,
    write=_write,
    open=_open,
    read_labels=_read_labels,
    script=_SCRIPT,
    class_script=_CLASS_SCRIPT,
    modules=("tf2onnx", "onnx", "onnxruntime"),
    extra="onnx",
    packages=("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
)
