"""Trains a few steps with each of the given settings and saves the weights. `test_distribution.py` starts it.

Usage: KERAS_BACKEND=... python -m tests.training.distribution_worker VIDEOS OUT DEVICES SETTINGS

DEVICES is the number of devices that this process gets; SETTINGS is a JSON object of {"name": {"backbone": "plain" or
"r3d_tiny", "steps": number, "shuffles": whether positives change places, "train": keys of `TrainConfig`}}. The result
of each is written to OUT/name.npz.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path


def make_devices(count):
    """Split the CPU into devices. This must happen before the backend is used."""
    if os.environ["KERAS_BACKEND"] == "jax":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    elif count > 1:
        import tensorflow as tf

        logical = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], logical)


def train(videos, out, backbone="plain", steps=2, train=None, shuffles=False):
    import keras
    import numpy as np

    from hdc_keras import HDC
    from hdc_keras.backbones import R3DTiny
    from hdc_keras.config import DataConfig, TrainConfig
    from hdc_keras.data.datasets import read_dataset
    from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
    from hdc_keras.data.sampling import WindowSpec
    from hdc_keras.training.batches import Batches
    from hdc_keras.training.distribution import Distribution
    from hdc_keras.training.models import compile_model
    from tests.plain_backbone import PlainConvolutions

    keras.utils.clear_session()  # layers are named as in the first training
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Strategies of one process would share the keys of their collectives. TensorFlow's tests also separate them so.
        tf.distribute.MirroredStrategy._collective_key_base += 1000
    config = TrainConfig(**train)
    distribution = Distribution(config)
    records = read_dataset(DataConfig(path=videos)).records
    loader = WindowLoader(
        sorted(records, key=lambda record: record.video_id),
        WindowSpec(4, 2, 4, (2,)),
        FrameStore((20, 20), 1.0),
        DecodeFailures(len(records), 0.1),
        config.batch_size,
        seed=1,
    )
    with distribution.activate():
        with distribution.scope():
            keras.utils.set_random_seed(3)
            network = {"plain": PlainConvolutions, "r3d_tiny": R3DTiny}[backbone]()
            # Two levels, to trace less. At this temperature gradients are of the order of 1, so float32 resolves 1e-5.
            levels = {"spatial": ["P2", "P3"], "temporal": ["P3"]}
            contrast = {"embedding_dim": 8, "temperature": 1.0, "levels": levels}
            model = HDC(network, views={"size": 16}, contrast=contrast, seed=5)
            compile_model(model, keras.optimizers.SGD(0.05, momentum=0.9), config, distribution)
        if shuffles:  # also without batch norm
            model.step_options = dataclasses.replace(model.step_options, shuffle_statistics=True)
        batches = Batches(loader, None, None, distribution).from_step(0)
        history = model.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False).history
    if distribution.is_chief:
        values = {v.path: keras.ops.convert_to_numpy(v) for v in model.variables}
        logs = {f"log:{name}": values[-1] for name, values in history.items()}
        np.savez(out, **values, **logs, devices=distribution.device_count)


if __name__ == "__main__":
    videos, out, devices, settings = sys.argv[1:]
    make_devices(int(devices))
    for name, options in json.loads(settings).items():
        train(videos, Path(out) / f"{name}.npz", **options)
