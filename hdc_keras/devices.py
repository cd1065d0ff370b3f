"""What this machine computes on, and what follows from it."""

import os

import keras

from hdc_keras.errors import ConfigError


def list_devices() -> list[str]:
    """Devices that the active Keras backend sees, as in `["cpu:0"]`.

    Keras' own list knows nothing of PyTorch's, and has TensorFlow take its devices, after which it joins no cluster.
    """
    if keras.backend.backend() == "torch":
        import torch

        return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu:0"]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        kinds = ("CPU", "GPU", "TPU")
        found = {kind.lower(): tf.config.list_physical_devices(kind) for kind in kinds}
        accelerators = [kind for kind in ("gpu", "tpu") if found[kind]] or ["cpu"]
        return [f"{kind}:{number}" for kind in accelerators for number in range(len(found[kind]))]
    return list(keras.distribution.list_devices())


def has_accelerator() -> bool:
    """Whether the active Keras backend sees a GPU or TPU."""
    return any(not device.startswith("cpu") for device in list_devices())


def make_deterministic() -> None:
    """Have the backend add in the same order every time. JAX does on a CPU and a TPU; on a GPU it is asked to by
    `XLA_FLAGS=--xla_gpu_deterministic_ops=true`, before Python starts."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


def refuse_wrong_gradients(compute_dtype: str) -> None:
    """Refuse to train where gradients are known to be wrong.

    On a CPU, TensorFlow 2.21's oneDNN kernel for the filter gradient of a padded 3D convolution in bfloat16 reads
    memory that nothing has written when clips are two frames long, as they are in the last stage of most 3D networks.
    Without oneDNN, and in float32, it is right (tests/test_devices.py).

    Raises:
        ConfigError: it is so here.
    """
    uses_onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0"
    if (
        compute_dtype == "bfloat16"
        and keras.backend.backend() == "tensorflow"
        and uses_onednn
        and not has_accelerator()
    ):
        raise ConfigError(
            "`train.precision`: on a CPU, TensorFlow's oneDNN gives wrong bfloat16 gradients of 3D convolutions. Use "
            "float32, or set TF_ENABLE_ONEDNN_OPTS=0 before Python starts (slower), or another backend."
        )


def uses_xla(jit: str) -> bool:
    """Resolve `train.jit`. XLA's 3D convolutions on a CPU are about 5 times slower than TensorFlow's own, so that there
    `auto` is off. JAX cannot run a training step fast without XLA, so that there `auto` is always on."""
    if jit == "auto":
        return keras.backend.backend() == "jax" or (keras.backend.backend() == "tensorflow" and has_accelerator())
    return jit == "on"
