"""Export to SavedModel, a folder that every TensorFlow runtime loads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.export.format import Format, Outputs, as_numpy
from hdc_keras.export.networks import LABELS, Network, classes_of

_SCRIPT = """\
import numpy as np
import tensorflow as tf

model = tf.saved_model.load("FILE")
video = np.random.randint(0, 255, (1, 16, 240, 320, 3), dtype="uint8")  # RGB; any batch, length, height and width
outputs = model.serve(video)
print({name: value.shape for name, value in outputs.items()})
"""

_CLASS_SCRIPT = """\
import numpy as np
import tensorflow as tf

model = tf.saved_model.load("FILE")
video = np.random.randint(0, 255, (1, 16, 240, 320, 3), dtype="uint8")  # RGB; any batch, length, height and width
found = model.serve(video)
labels = found["labels"].numpy()[0].astype("U")
print(dict(zip(labels.tolist(), found["scores"].numpy()[0].tolist())))
"""


def _write(network: Network, experiment: Experiment, path: Path) -> None:
    import tensorflow as tf

    classes = classes_of(network)
    signature = tf.TensorSpec((None, None, None, None, 3), tf.uint8, name="video")
    least, multiple = SAVED_MODEL.least_frames(network), network.backbone.clip_multiples[0]

    def serve(video: tf.Tensor) -> dict[str, tf.Tensor]:
        expected = f"expected video (batch, time, height, width, 3) of {least} or more frames, of any size but 0 x 0"
        tf.debugging.assert_greater_equal(tf.shape(video)[1:4], [least, 1, 1], expected)
        if multiple > 1:
            expected = f"expected video whose number of frames is a multiple of {multiple}"
            tf.debugging.assert_equal(tf.shape(video)[1] % multiple, 0, expected)
        outputs = network.call(video)
        if classes:  # for every video, because TensorFlow Serving expects outputs to have the batch axis
            outputs[LABELS] = tf.tile(tf.constant(classes)[None], (tf.shape(video)[0], 1))
        return outputs

    # Not `keras.export.ExportArchive`, which saves every weight twice (Keras 3.15).
    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    module.serve = tf.function(serve, input_signature=[signature])
    tf.saved_model.save(module, str(path), signatures={"serve": module.serve, "serving_default": module.serve})


def _open(path: Path) -> Callable[[np.ndarray], Outputs]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def run(video: np.ndarray) -> Outputs:
        found = loaded.serve(video)
        return as_numpy({name: value for name, value in found.items() if name != LABELS})

    return run


def _read_labels(path: Path) -> list[str]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    if LABELS not in loaded.signatures["serve"].structured_outputs:
        return []
    frames = 32  # longer than any network needs
    found = loaded.serve(np.zeros((1, frames, 8, 8, 3), np.uint8))
    return [label.decode() for label in found[LABELS].numpy()[0]]


SAVED_MODEL = Format(
    name="saved_model",
    file_name="saved_model",
    summary="A SavedModel: runs in TensorFlow 2, TensorFlow Serving and other runtimes that load SavedModels.",
    takes_video=True,
    write=_write,
    open=_open,
    read_labels=_read_labels,
    script=_SCRIPT,
    class_script=_CLASS_SCRIPT,
    packages=("tensorflow",),
    refuses_short_clips=True,
)
