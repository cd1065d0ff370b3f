"""Measure the time of the full HDC step, relative to a training step of the bare backbone on as many clips.

Command: python benchmarks/step.py [--backbone r3d_tiny] [--backbone r3d18] [--rounds 5]
Cost:    about 3 minutes on 2 cores, most of it for r3d18.

The HDC step includes views, heads, losses, weighting and the optimizer. The bare step is the backbone's forward pass,
backward pass and update, without any of these. The two are timed alternately, so their ratio depends little on other
load on the machine; quote the median ratio. The views are also timed alone, compiled as in the step. `traces` counts
how often the step was traced. Tracing after the first step would mean that the graph is built again.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hdc_keras  # noqa: F401, I001  (must come before Keras, because it enables oneDNN)
import keras
import numpy as np

from hdc_keras.backbones import build_backbone
from hdc_keras.devices import has_accelerator, list_devices
from hdc_keras.model import HDC
from hdc_keras.views.generator import ViewGenerator

# (frames, decode size, view size, videos per step). Sizes are those of the named configs; a CPU takes fewer videos.
SETTINGS = {"r3d_tiny": (8, (40, 40), 32, 32), "r3d18": (16, (128, 171), 112, 64 if has_accelerator() else 2)}


class Bare(keras.Model):
    """The backbone with a loss that costs almost nothing: the mean square of its output."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def call(self, clips, training=None):
        return self.backbone(clips, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(keras.ops.cast(y_pred, "float32")))


class Views(keras.Model):
    """The views alone, compiled as in the step. Each view is reduced to one number, so no pixels leave the device."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def call(self, windows):
        return keras.ops.mean(self.generator(windows), axis=(1, 2, 3, 4))


class Traced(HDC):
    """HDC that counts how often its Python code runs. In a compiled step, that is once per trace."""

    traces = 0

    def train_step(self, *arguments):
        Traced.traces += 1
        return super().train_step(*arguments)


def seconds(step, batch):
    """Seconds of one step, until its result is on the host."""
    began = time.perf_counter()
    float(np.asarray(step(batch)).reshape(-1)[0])
    return time.perf_counter() - began


def measure(name, rounds, views):
    """Time one backbone and print a line."""
    frames, decode_size, size, videos = SETTINGS[name]
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 255, (videos, 2, frames, *decode_size, 3), dtype=np.uint8)
    model = Traced(build_backbone(name), {"size": size, **views})
    model.compile(keras.optimizers.SGD(0.01))
    clip_count = videos * len(model.view_generator.view_names)
    clips = rng.random((clip_count, frames, size, size, 3), dtype=np.float32)
    bare = Bare(build_backbone(name))
    bare.compile(keras.optimizers.SGD(0.01), jit_compile=model.jit_compile)
    generator = Views(ViewGenerator(model.views_config, model.contrast_config.task, 0))
    generator.compile(jit_compile=model.jit_compile)
    timed = ((model.train_on_batch, windows), (bare.train_on_batch, clips), (generator.predict_on_batch, windows))
    for step, batch in timed:
        seconds(step, batch)
    at_first, Traced.traces = Traced.traces, 0
    for step, batch in timed:
        seconds(step, batch)
    times = [[seconds(step, batch) for step, batch in timed] for _ in range(rounds)]
    ratio = statistics.median(step / bare for step, bare, _ in times)
    share = statistics.median(views / step for step, _, views in times)
    step, backbone, _ = (clip_count / statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{name:10s} {clip_count:4d} clips of {frames}x{size}x{size}   HDC step {step:8.1f} clips/s   "
        f"bare backbone {backbone:8.1f} clips/s   time ratio {ratio:.3f}   views alone {share:.1%} of the step   "
        f"traces {at_first} at the first step, {Traced.traces} after it",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append", choices=list(SETTINGS), help="may be repeated; default: both")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each kind")
    arguments = parser.parse_args()
    print(f"backend {keras.backend.backend()}, devices {list_devices()}")
    for name in arguments.backbone or SETTINGS:
        measure(name, arguments.rounds, {"fade_static": 0.8})


if __name__ == "__main__":
    main()
