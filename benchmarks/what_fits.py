"""Print what a step of the two full-size backbones needs, by formula, and how many videos fit into 24, 40 and 80 GB.

Command: KERAS_BACKEND=torch python benchmarks/what_fits.py   (TensorFlow refuses bfloat16 on a CPU)
Cost:    half a minute; nothing is trained.

Rows are for bfloat16, clips of 16 x 112 x 112, three views and SGD; the formula is `hdc_keras/step/memory.py`.
"""

import keras

from hdc_keras import HDC
from hdc_keras.backbones import R3D18, R2Plus1D18
from hdc_keras.step.memory import step_memory

WINDOWS = (2, 16, 128, 171, 3)
MODES = {
    "one piece": {},
    "`micro_batches: 4`": {"micro_batches": 4},
    "`rematerialise: true`": {"rematerialise": True},
}
RESERVE = 1.05  # for what a driver and other programs hold


def gib(model, videos):
    return step_memory(model, videos, WINDOWS).total / 2**30


def most_videos(model, memory):
    """The largest multiple of 4 that fits into `memory` GiB."""
    videos = 4
    while gib(model, videos + 4) * RESERVE <= memory:
        videos += 4
    return videos


def main():
    keras.config.set_dtype_policy("mixed_bfloat16")
    for name, backbone in (("R3D-18", R3D18), ("R(2+1)D-18", R2Plus1D18)):
        model = HDC(backbone(), {"size": 112})
        for mode, options in MODES.items():
            model.compile("sgd", **options)
            cells = [f"{gib(model, videos):.1f}" for videos in (32, 64, 128)]
            cells += [str(most_videos(model, memory)) for memory in (24, 40, 80)]
            print(f"| {name} | {mode} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
