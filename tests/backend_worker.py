"""Evaluates and trains a saved model under one backend. test_backends.py runs it in a new process.

Usage: KERAS_BACKEND=... python backend_worker.py MODEL WINDOWS OUT. Fixed numbers replace the random draws of the
augmentation, because every backend has a different random generator.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import ops

from hdc_keras.model import HDC

BATCH = 8


class GivenDraws:
    """Replaces `ViewGenerator.draw` by fixed numbers."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.draws = {}
        for owner in ("anchor", "other"):
            size, corner = rng.uniform(0.6, 0.9, (BATCH, 2)), rng.uniform(0, 0.1, (BATCH, 2))
            geometry = {
                "box": np.concatenate([corner, size], axis=1),
                "flip": rng.integers(0, 2, BATCH),
                "sigma": rng.uniform(0.0, 1.1, BATCH),
            }
            colour = {name: rng.uniform(0.7, 1.3, BATCH) for name in ("brightness", "contrast", "saturation")}
            colour["hue"] = rng.uniform(-0.1, 0.1, BATCH)
            self.draws[f"{owner}_fading"] = {"share": rng.random(BATCH)}
            self.draws |= {f"{owner}_geometry": geometry, f"{owner}_colour": colour}
        self.draws["spatial_colour"] = self.draws["anchor_colour"]

    def __call__(self, batch, frames):
        return {
            part: {name: ops.convert_to_tensor(value.astype("float32")) for name, value in values.items()}
            for part, values in self.draws.items()
        }


def main(model_file, windows_file, out):
    windows = np.load(windows_file)
    model = keras.models.load_model(model_file, compile=False)
    assert isinstance(model, HDC)
    model.view_generator.draw = GivenDraws()
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9))
    results = {}
    first = model.evaluate(windows[:BATCH], batch_size=BATCH, return_dict=True, verbose=0)
    results |= {f"metric/{name}": value for name, value in first.items()}
    history = model.fit(windows, batch_size=BATCH, shuffle=False, verbose=0).history  # five steps
    results |= {f"trained/{name}": values[0] for name, values in history.items()}
    results |= {f"weight/{v.path}": ops.convert_to_numpy(v) for v in model.weights if "seed" not in v.path}
    np.savez(out, **results)
    model.save(Path(out).with_suffix(".keras"))

    import tensorflow as tf  # for data only, under every backend

    dataset = tf.data.Dataset.from_tensor_slices(windows).batch(BATCH)
    loss = model.fit(dataset, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
    print(f"{keras.backend.backend()}: done")


if __name__ == "__main__":
    main(*sys.argv[1:])
