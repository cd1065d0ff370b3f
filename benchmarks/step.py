"""Measure the time of the full HDC step, relative to the bare backbone or to a plain PyTorch loop of the same work.

Command: python benchmarks/step.py [--backbone r3d_tiny] [--backbone r3d18] [--rounds 5]
         python benchmarks/step.py --peer [--backend torch] [--backend tensorflow] [--videos 4]
Cost:    about 3 minutes on 2 cores, most of it for r3d18; with --peer 10 minutes, and 30 more for JAX.

The HDC step includes views, heads, losses, weighting and the optimizer. The bare step is the backbone's forward pass,
backward pass and update, without any of these. The two are timed alternately, so their ratio depends little on other
load on the machine; quote the median ratio. The views are also timed alone, compiled as in the step. `traces` counts
how often the step was traced. Tracing after the first step would mean that the graph is built again.

With --peer, R3D-18 trains in one process for each backend and one for the plain loop (plain_pytorch.py), which take
their steps in turn. Memory is the peak of each process above what it had before the model was built.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hdc_keras  # noqa: F401, I001  (must come before Keras, because it enables oneDNN)
import keras
import numpy as np

from hdc_keras.backbones import build_backbone
from hdc_keras.config import Length, TrainConfig
from hdc_keras.devices import has_accelerator, list_devices, peak_memory
from hdc_keras.model import HDC
from hdc_keras.training.optimizers import build_optimizer
from hdc_keras.views.generator import ViewGenerator


class Setting(NamedTuple):
    """What is timed: sizes are those of the named configs; a CPU takes fewer videos."""

    backbone: str
    frames: int
    decode_size: tuple[int, int]
    size: int
    videos: int
    views: dict[str, Any]


SETTINGS = {
    "r3d_tiny": Setting("r3d_tiny", 8, (40, 40), 32, 32, {"fade_static": 0.8}),
    "r3d18": Setting("r3d18", 16, (128, 171), 112, 64 if has_accelerator() else 2, {"fade_static": 0.8}),
    "videos-cpu": Setting(
        "r3d_small_motion", 8, (96, 128), 48, 16, {"focus": 0.7, "steady": True, "crop_area": (0.4, 1.0), "flip": 0.0}
    ),
    "videos-cpu of 0.1.0": Setting("r3d_tiny", 8, (64, 86), 48, 16, {}),
}


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


def measure(name, rounds):
    """Time one setting and print a line."""
    backbone, frames, decode_size, size, videos, views = SETTINGS[name]
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 255, (videos, 2, frames, *decode_size, 3), dtype=np.uint8)
    model = Traced(build_backbone(backbone), {"size": size, **views})
    model.compile(keras.optimizers.SGD(0.01))
    clip_count = videos * len(model.view_generator.view_names)
    clips = rng.random((clip_count, frames, size, size, 3), dtype=np.float32)
    bare = Bare(build_backbone(backbone))
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
    step, network, _ = (clip_count / statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{name:10s} {clip_count:4d} clips of {frames}x{size}x{size}   HDC step {step:8.1f} clips/s   "
        f"bare backbone {network:8.1f} clips/s   time ratio {ratio:.3f}   views alone {share:.1%} of the step   "
        f"traces {at_first} at the first step, {Traced.traces} after it",
        flush=True,
    )


def work(kind, videos):
    """In a process of its own: take a step for each line of standard input, and print seconds and memory in GiB."""
    _, frames, decode_size, size, *_ = SETTINGS["r3d18"]
    windows = np.random.default_rng(0).integers(0, 255, (videos, 2, frames, *decode_size, 3), dtype=np.uint8)
    before = peak_memory()[0]
    if kind == "plain":
        import torch
        from plain_pytorch import PlainLoop

        loop, windows = PlainLoop("r3d18", size, "cpu"), torch.from_numpy(windows)
        step = loop.step
    else:
        model = HDC(build_backbone("r3d18"), {"size": size})
        model.compile(build_optimizer(TrainConfig(learning_rate=0.01), Length(1000, 200_000)))
        step = model.train_on_batch
    for _ in sys.stdin:
        taken = seconds(step, windows)
        print(f"STEP {taken} {peak_memory()[0] - before}", flush=True)


def compare_with_peer(backends, videos, rounds):
    """Time a step of each backend and of the plain loop in turn, and print the median ratios to the plain loop."""
    workers = {}
    for kind in ["plain", *backends]:
        workers[kind] = subprocess.Popen(
            [sys.executable, __file__, "--worker", kind, "--videos", str(videos)],
            env={**os.environ, "KERAS_BACKEND": "torch" if kind == "plain" else kind},
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def step(kind):
        workers[kind].stdin.write("step\n")
        workers[kind].stdin.flush()
        for line in workers[kind].stdout:
            if line.startswith("STEP "):
                return tuple(map(float, line.split()[1:]))
        raise RuntimeError(f"the process of {kind} ended")

    try:
        for kind in workers:  # compilation, first allocations
            step(kind), step(kind)
        times = [{kind: step(kind) for kind in workers} for _ in range(rounds)]
    finally:
        for worker in workers.values():
            worker.kill()
    for kind in workers:
        ratios = [of_round[kind][0] / of_round["plain"][0] for of_round in times]
        taken, memory = statistics.median(of_round[kind][0] for of_round in times), times[-1][kind][1]
        print(
            f"{kind:10s} {taken:6.2f} s a step, {statistics.median(ratios):.2f} of the plain loop "
            f"({min(ratios):.2f} to {max(ratios):.2f}); memory {memory:.2f} GiB, "
            f"{memory / times[-1]['plain'][1]:.2f} of the plain loop",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbone", action="append", choices=list(SETTINGS), help="repeatable; default: r3d_tiny and r3d18"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each kind")
    parser.add_argument("--peer", action="store_true", help="compare with a plain PyTorch loop of the same work")
    parser.add_argument("--backend", action="append", choices=["tensorflow", "torch", "jax"], help="default: all")
    parser.add_argument("--videos", type=int, default=4, help="with --peer: videos per step")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.videos)
        return
    if arguments.peer:
        compare_with_peer(arguments.backend or ["tensorflow", "torch", "jax"], arguments.videos, arguments.rounds)
        return
    print(f"backend {keras.backend.backend()}, devices {list_devices()}")
    for name in arguments.backbone or ("r3d_tiny", "r3d18"):
        measure(name, arguments.rounds)


if __name__ == "__main__":
    main()
