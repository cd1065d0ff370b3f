"""Export of the backbone alone to a Keras file, to fine-tune or to build models on, with any backend."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.export.format import Format, Outputs, as_numpy
from hdc_keras.model import HDC

_SCRIPT = """\
import keras
import numpy as np

backbone = keras.models.load_model("FILE")
clips = np.random.random((1, 16, 112, 112, 3))  # RGB in [0, 1]; any batch, length, height and width
print({level: value.shape for level, value in backbone.predict(clips, verbose=0).items()})
pooled = keras.layers.GlobalAveragePooling3D()(backbone.output["P5"])
classifier = keras.Model(backbone.input, keras.layers.Dense(10)(pooled))  # to fine-tune
"""


def _write(model: HDC, experiment: Experiment, path: Path) -> None:
    # A plain `keras.Model` instead of a `VideoBackbone`, so that it loads without this package.
    keras.Model(model.backbone.input, dict(model.backbone.pyramid_outputs), name=model.backbone.name).save(path)


def _open(path: Path) -> Callable[[np.ndarray], Outputs]:
    loaded = keras.models.load_model(path)
    return lambda clips: as_numpy(loaded(clips, training=False))


KERAS_BACKBONE = Format(
    name="keras",
    file_name="backbone.keras",
    summary="The backbone alone, without projection heads: a Keras 3 file for TensorFlow, JAX and PyTorch, to "
    "fine-tune or to build other models on. It contains only layers that are part of Keras.",
    takes_video=False,
    write=_write,
    open=_open,
    script=_SCRIPT,
    needs_tensorflow=False,
)
