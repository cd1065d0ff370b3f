"""Trains a few steps on the devices that its settings name, and saves the weights: run by `test_distribution.py`."""

import json
import os
import sys


def train(settings):
    if settings["devices"] > 1 and os.environ["KERAS_BACKEND"] == "jax":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={settings['devices']}"

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

    if settings["devices"] > 1 and os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        logical = [tf.config.LogicalDeviceConfiguration()] * settings["devices"]
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], logical)

    train = TrainConfig(**settings["train"])
    distribution = Distribution(train)
    records = read_dataset(DataConfig(path=settings["data"])).records
    loader = WindowLoader(
        sorted(records, key=lambda record: record.video_id),
        WindowSpec(4, 2, 4, (2,)),
        FrameStore((20, 20), 1.0),
        DecodeFailures(len(records), 0.1),
        train.batch_size,
        seed=1,
    )
    with distribution.in_use():
        with distribution.scope():
            keras.utils.set_random_seed(3)
            backbone = {"plain": PlainConvolutions, "r3d_tiny": R3DTiny}[settings["backbone"]]()
            # A temperature at which gradients are of the order of 1, so that float32 can tell 1e-5 of them.
            model = HDC(backbone, views={"size": 16}, contrast={"embedding_dim": 8, "temperature": 1.0}, seed=5)
            compile_model(model, keras.optimizers.SGD(0.05, momentum=0.9), train, distribution)
        batches = Batches(loader, None, None, distribution).from_step(0)
        history = model.fit(batches, steps_per_epoch=settings["steps"], verbose=0, shuffle=False).history
    if distribution.is_chief:
        numbers = {v.path: keras.ops.convert_to_numpy(v) for v in model.variables}
        logs = {f"log:{name}": values[-1] for name, values in history.items()}
        np.savez(settings["out"], **numbers, **logs, devices=distribution.device_count)


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
