"""Export of the backbone alone, or of a classifier, to a Keras file: to train or build on, with any backend."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.export.format import Format, Outputs, as_numpy
from hdc_keras.export.networks import Network, append_labels, appended_labels, classes_of, plain_network

_SCRIPT = """\
import keras
import numpy as np

backbone = keras.models.load_model("FILE")
clips = np.random.random((1, 16, 112, 112, 3))  # RGB in [0, 1]; any batch, length, height and width
print({level: value.shape for level, value in backbone.predict(clips, verbose=0).items()})
pooled = keras.layers.GlobalAveragePooling3D()(backbone.output["P5"])
classifier = keras.Model(backbone.input, keras.layers.Dense(10)(pooled))  # to fine-tune
"""

_CLASS_SCRIPT = """\
import json
import zipfile

import keras
import numpy as np

classifier = keras.models.load_model("FILE")
labels = json.loads(zipfile.ZipFile("FILE").read("labels.json"))
clips = np.random.random((1, 16, 112, 112, 3))  # RGB in [0, 1]; any batch, length, height and width
scores = classifier.predict(clips, verbose=0)["scores"][0]
print(dict(zip(labels, scores.tolist())))
"""


def _write(network: Network, experiment: Experiment, path: Path) -> None:
    # A plain `keras.Model` instead of a `VideoBackbone`, so that it loads without this package if its layers do.
    plain_network(network).save(path)
    append_labels(path, classes_of(network))


def _open(path: Path) -> Callable[[np.ndarray], Outputs]:
    loaded = keras.models.load_model(path)
    return lambda clips: as_numpy(loaded(clips, training=False))


KERAS_BACKBONE = Format(
    name="keras",
    file_name="backbone.keras",
    summary="A Keras 3 file for TensorFlow, JAX and PyTorch, to fine-tune or to build other models on. It takes clips "
    "that are cropped already.",
    takes_video=False,
    write=_write,
    open=_open,
    read_labels=appended_labels,
    script=_SCRIPT,
    class_script=_CLASS_SCRIPT,
    needs_tensorflow=False,
)
