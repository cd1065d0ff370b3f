"""What is exported of a model: the network that takes video, or one of Keras' own layers that takes clips."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from keras import layers

from hdc_keras.classification.network import SCORES, ClassNetwork
from hdc_keras.config import Experiment
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.finetuning.classifier import VideoClassifier
from hdc_keras.model import HDC

Model = HDC | VideoClassifier
Network = ClipEncoder | ClassNetwork

LABELS = "labels"
_LABELS_FILE = "labels.json"


def network_of(model: Model, experiment: Experiment) -> Network:
    """The network that takes uint8 video of any size: the encoder of a pretrained model, or a classifier."""
    frame_size = experiment.data.decode_size
    return ClassNetwork(model, frame_size) if isinstance(model, VideoClassifier) else ClipEncoder(model, frame_size)


def classes_of(network: Network) -> list[str]:
    """Names of the classes, in the order of the scores; empty if the network is no classifier."""
    return list(network.classes) if isinstance(network, ClassNetwork) else []


def has_own_layers(network: Network) -> bool:
    """Whether the backbone has layers of this package, so that a Keras file of it does not load without the package."""
    names = (keras.saving.get_registered_name(type(layer)) for layer in network.backbone.layers)
    return any(name.startswith("hdc_keras>") for name in names)


def plain_network(network: Network) -> keras.Model:
    """The network on clips (batch, time, height, width, 3) in [0, 1], without classes of this package but the layers.

    It returns the feature map of each level by name or, if it is a classifier, `scores`.
    """
    outputs = dict(network.backbone.pyramid_outputs)
    if isinstance(network, ClassNetwork):
        pooled = [
            layers.GlobalAveragePooling3D(dtype="float32", name=f"{level}_mean")(outputs[level])
            for level in network.levels
        ]
        features = layers.Concatenate(dtype="float32", name="features")(pooled) if len(pooled) > 1 else pooled[0]
        scores = layers.Dense(len(network.classes), "softmax", dtype="float32", name=SCORES)
        outputs = {SCORES: scores(features)}
        scores.set_weights(network.classifier.get_weights())
    return keras.Model(network.backbone.input, outputs, name=network.backbone.name)


def in_float32(model: Model) -> Model:
    """Return the model, or a float32 copy of a model that computes in another precision.

    Other runtimes lack bfloat16, and they round float16 differently from TensorFlow. The weights are float32 in any
    case.
    """
    config: dict[str, Any] = model.get_config()
    float32 = keras.dtype_policies.serialize(keras.DTypePolicy("float32"))
    if config["dtype"] == config["backbone"]["config"]["dtype"] == float32:
        return model
    config["dtype"] = config["backbone"]["config"]["dtype"] = float32
    copy: Model = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    if isinstance(model, HDC):
        copy.uses_averages = model.uses_averages
    return copy


def append_labels(file: Path, classes: Sequence[str]) -> None:
    """Put the class names into a file, as `labels.json` of a zip archive at its end.

    A `.keras` file is a zip archive. A LiteRT model may be followed by one: LiteRT's own metadata puts labels there.
    """
    if classes:
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(_LABELS_FILE, json.dumps(list(classes)))


def appended_labels(file: Path) -> list[str]:
    """The class names that `append_labels` put into a file; empty if there are none."""
    if not zipfile.is_zipfile(file):
        return []
    with zipfile.ZipFile(file) as archive:
        if _LABELS_FILE not in archive.namelist():
            return []
        labels: list[str] = json.loads(archive.read(_LABELS_FILE))
        return labels
