"""Greatest memory of a training step against the batch size: in one piece, rematerialised, in micro-batches.

Command: python benchmarks/memory.py [--figure docs/memory.png]

Each cell is a process of its own that takes two steps with r3d_tiny at 16 x 64 x 64 on the active backend; its figure
is the greatest memory (resident set on a CPU, the allocator's own peak on a GPU) above that before the first step.
Cached micro-batches hold 8 videos each. The seconds are those of the second step.
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
    f"cached, {MICRO_BATCH} videos a micro-batch": lambda batch: {"micro_batches": batch // MICRO_BATCH},
}


def cell(batch, options):
    """GiB above the start, seconds of a step, and the loss."""
    import hdc_keras  # noqa: F401, I001  (before Keras: it switches oneDNN on)
    import keras
    import numpy as np

    from hdc_keras import HDC
    from hdc_keras.backbones import R3DTiny
    from hdc_keras.training.rehearsal import greatest_memory

    windows = np.random.default_rng(0).integers(0, 255, (batch, 2, 16, 72, 72, 3), dtype=np.uint8)
    model = HDC(R3DTiny(), views={"size": 64})
    model.compile(keras.optimizers.SGD(0.01), **options)
    before = greatest_memory()[0]
    loss = float(np.asarray(model.train_on_batch(windows)).reshape(-1)[0])
    began = time.perf_counter()
    float(np.asarray(model.train_on_batch(windows)).reshape(-1)[0])
    print(json.dumps([greatest_memory()[0] - before, time.perf_counter() - began, loss]))


def measured(batch, options):
    done = subprocess.run(
        [sys.executable, __file__, "--cell", json.dumps([batch, options])],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def draw(table, file):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, cells in table.items():
        axes.plot(BATCHES, [gib for gib, _, _ in cells], marker="o", label=name)
    axes.set(xlabel="videos a step", ylabel="GiB above the start", xticks=BATCHES, ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", help="PNG to write")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        batch, options = json.loads(arguments.cell)
        return cell(batch, options)
    table = {}
    for name, options in MODES.items():
        table[name] = [measured(batch, options(batch)) for batch in BATCHES]
        cells = "   ".join(
            f"{b:3d}: {g:5.2f} GiB {s:5.2f} s" for b, (g, s, _) in zip(BATCHES, table[name], strict=True)
        )
        print(f"{name:30} {cells}", flush=True)
    if arguments.figure:
        draw(table, arguments.figure)


if __name__ == "__main__":
    main()
