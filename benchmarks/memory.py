"""Measure the peak memory of a training step by batch size: in one piece, rematerialised, in micro-batches.

Command: python benchmarks/memory.py [--batches 8 16 32 64] [--figure docs/images/memory.png]
Cost:    2 to 3 minutes on 2 cores, and 3 GiB of memory on TensorFlow.

Each measurement is a new process that takes two steps with r3d_tiny at 16 x 64 x 64 on the active backend. It prints
the peak memory (resident set on a CPU, the allocator's peak on a GPU) minus the memory before the first step, and the
seconds of the second step. Cached micro-batches hold 8 videos each.
"""

import argparse
import json
import os
import subprocess
import sys
import time

BATCHES = (8, 16, 32, 64)
MICRO_BATCH = 8
MODES = {
    "one piece": lambda batch: {},
    "rematerialised": lambda batch: {"rematerialise": True},
    f"cached, {MICRO_BATCH} videos per micro-batch": lambda batch: {"micro_batches": batch // MICRO_BATCH},
}


def measure_here(batch, options):
    """Print the GiB that a step needs, its seconds, and the loss."""
    import hdc_keras  # noqa: F401, I001  (must come before Keras, because it enables oneDNN)
    import keras
    import numpy as np

    from hdc_keras import HDC
    from hdc_keras.backbones import R3DTiny
    from hdc_keras.devices import peak_memory

    windows = np.random.default_rng(0).integers(0, 255, (batch, 2, 16, 72, 72, 3), dtype=np.uint8)
    model = HDC(R3DTiny(), views={"size": 64})
    model.compile(keras.optimizers.SGD(0.01), **options)
    before = peak_memory()[0]
    loss = float(np.asarray(model.train_on_batch(windows)).reshape(-1)[0])
    began = time.perf_counter()
    float(np.asarray(model.train_on_batch(windows)).reshape(-1)[0])
    print(json.dumps([peak_memory()[0] - before, time.perf_counter() - began, loss]))


def measure(batch, options):
    """Run `measure_here` in a new process and return what it prints."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps([batch, options])],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def draw(table, batches, file):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, cells in table.items():
        axes.plot(batches, [gib for gib, _, _ in cells], marker="o", label=name)
    axes.set(xlabel="videos per step", ylabel="GiB above the start", xticks=batches, ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="videos per step")
    parser.add_argument("--figure", help="PNG file to draw")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_here(*json.loads(arguments.measure))
        return
    table = {}
    for name, options in MODES.items():
        table[name] = [measure(batch, options(batch)) for batch in arguments.batches]
        cells = "   ".join(
            f"{b:3d}: {g:5.2f} GiB {s:5.2f} s" for b, (g, s, _) in zip(arguments.batches, table[name], strict=True)
        )
        print(f"{name:30} {cells}", flush=True)
    if arguments.figure:
        draw(table, arguments.batches, arguments.figure)


if __name__ == "__main__":
    main()
