"""Export to SavedModel, a folder that every TensorFlow runtime loads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.export.format import Format, Outputs, as_numpy
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.model import HDC

_SCRIPT = """\
import numpy as np
import tensorflow as tf

model = tf.saved_model.load("FILE")
video = np.random.randint(0, 255, (1, 16, 240, 320, 3), dtype="uint8")  # RGB; any batch, length, height and width
outputs = model.serve(video)
print({name: value.shape for name, value in outputs.items()})
"""


def _write(model: HDC, experiment: Experiment, path: Path) -> None:
    import tensorflow as tf

    encoder = ClipEncoder(model, experiment.data.decode_size)
    signature = tf.TensorSpec((None, None, None, None, 3), tf.uint8, name="video")
    least = SAVED_MODEL.least_frames(model)

    def serve(video: tf.Tensor) -> dict[str, tf.Tensor]:
        expected = f"expected video (batch, time, height, width, 3) of {least} or more frames, of any size but 0 x 0"
        tf.debugging.assert_greater_equal(tf.shape(video)[1:4], [least, 1, 1], expected)
        return encoder.call(video)

    # Not `keras.export.ExportArchive`, which saves every weight twice (Keras 3.15).
    module = tf.Module()
    module.weights = [variable.value for variable in encoder.variables]
    module.serve = tf.function(serve, input_signature=[signature])
    tf.saved_model.save(module, str(path), signatures={"serve": module.serve, "serving_default": module.serve})


def _open(path: Path) -> Callable[[np.ndarray], Outputs]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda video: as_numpy(loaded.serve(video))


SAVED_MODEL = Format(
    name="saved_model",
    file_name="saved_model",
    summary="A SavedModel: runs in TensorFlow 2, TensorFlow Serving and other runtimes that load SavedModels.",
    takes_video=True,
    write=_write,
    open=_open,
    script=_SCRIPT,
    packages=("tensorflow",),
    refuses_short_clips=True,
)
