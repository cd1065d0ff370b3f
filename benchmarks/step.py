"""Clips per second of the full HDC step, beside the bare backbone's forward and backward over the same number of clips.

Command: python benchmarks/step.py [--backbone r3d_tiny] [--backbone r3d18] [--rounds 5]

All are timed in turn within one run, so that their ratios do not depend on the machine's mood; the median ratio is what
to quote. The step includes views, heads, losses, weighting and the optimizer; the bare backbone has none of these. The
views are also timed alone, compiled as in the step. `traces` is how often the step was traced in all: more than at its
first call would mean that the graph is made again.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hdc_keras  # noqa: F401, I001  (before Keras: it switches oneDNN on)
import keras
import numpy as np

from hdc_keras.backbones import build_backbone
from hdc_keras.devices import has_accelerator, list_devices
from hdc_keras.model import HDC
from hdc_keras.views.generator import ViewGenerator

# (frames, decode size, view size, videos a step) as the named configs have them; on a CPU few videos of full size fit.
SETTINGS = {"r3d_tiny": (8, (40, 40), 32, 32), "r3d18": (16, (128, 171), 112, 64 if has_accelerator() else 2)}


class Bare(keras.Model):
    """The backbone with the cheapest loss there is: the mean of its output's square."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def call(self, clips, training=None):
        return self.backbone(clips, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(keras.ops.cast(y_pred, "float32")))


class Views(keras.Model):
    """The views alone, compiled as in the step; of each view one number, so that no pixels leave the device."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def call(self, windows):
        return keras.ops.mean(self.generator(windows), axis=(1, 2, 3, 4))


class Traced(HDC):
    """HDC that counts how often its Python code runs: once a trace where the step is compiled."""

    traces = 0

    def embed(self, features, training=None):
        Traced.traces += 1
        return super().embed(features, training=training)


def seconds(step, batch):
    began = time.perf_counter()
    float(np.asarray(step(batch)).reshape(-1)[0])
    return time.perf_counter() - began


def measure(name, rounds, views):
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
    rounds_taken = [[seconds(step, batch) for step, batch in timed] for _ in range(rounds)]
    ratio = statistics.median(step / bare for step, bare, _ in rounds_taken)
    share = statistics.median(views / step for step, _, views in rounds_taken)
    step, backbone, _ = (clip_count / statistics.median(times) for times in zip(*rounds_taken, strict=True))
    print(
        f"{name:10s} {clip_count:4d} clips of {frames}x{size}x{size}   HDC step {step:8.1f} clips/s   "
        f"bare backbone {backbone:8.1f} clips/s   time ratio {ratio:.3f}   views alone {share:.1%} of the step   "
        f"traces {at_first} at the first step, {Traced.traces} after it",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append", choices=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"backend {keras.backend.backend()}, devices {list_devices()}")
    for name in arguments.backbone or SETTINGS:
        measure(name, arguments.rounds, {"fade_static": 0.8})


if __name__ == "__main__":
    main()
