"""Fine-tunes on several logical CPU devices, which TensorFlow can only set up in a new process.

Usage: python devices_worker.py DEVICES FOLDER VIDEOS. Writes the scores of the test videos to FOLDER/scores.npy.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from hdc_keras.backbones import BACKBONES
from hdc_keras.finetuning.job import fine_tune
from tests.finetuning.small_job import EXPERIMENT, frame_store, small_job
from tests.plain_backbone import PlainConvolutions


def main(devices: int, folder: Path, videos: str) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    BACKBONES["r3d_tiny"] = PlainConvolutions
    train = EXPERIMENT.train.model_copy(update={"strategy": "mirrored"})
    experiment = EXPERIMENT.model_copy(update={"train": train})
    scores = fine_tune(small_job(videos, experiment=experiment), folder, frame_store())
    np.save(folder / "scores.npy", scores.scores)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
