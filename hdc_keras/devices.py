"""The devices of this machine, and what the active backend can do on them."""

import os
import resource

import keras

from hdc_keras.errors import ConfigError


def list_devices() -> list[str]:
    """Devices that the active Keras backend sees, as in `["cpu:0"]`; accelerators only, where there are any.

    `keras.distribution.list_devices` does not list PyTorch's devices. On TensorFlow it initialises them, after which
    the process cannot join a cluster.
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


def peak_memory() -> tuple[float, str]:
    """Peak memory of this process so far in GiB, and what it was measured on: the accelerator, or else the process."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30, "of the first GPU"
    elif backend == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats()
        if stats:
            return stats["peak_bytes_in_use"] / 2**30, "of the first device"
    else:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30, "of the GPU"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "of this process"


def make_deterministic() -> None:
    """Make the backend's operations bit-identical from run to run.

    JAX is deterministic on a CPU or TPU. On a GPU it needs `XLA_FLAGS=--xla_gpu_deterministic_ops=true` before Python
    starts; this function cannot set that.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


def refuse_wrong_gradients(compute_dtype: str) -> None:
    """Refuse to train where gradients are known to be wrong: in bfloat16 on a CPU with TensorFlow's oneDNN.

    For clips of two frames, which is what the last stage of most 3D networks sees, the oneDNN kernel of TensorFlow 2.21
    for the filter gradient of a padded 3D convolution in bfloat16 reads uninitialised memory. In float32, or without
    oneDNN, gradients are right (tests/test_devices.py).

    Args:
        compute_dtype: compute dtype of the model.

    Raises:
        ConfigError: gradients would be wrong.
    """
    uses_onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0"
    if (
        compute_dtype == "bfloat16"
        and keras.backend.backend() == "tensorflow"
        and uses_onednn
        and not has_accelerator()
    ):
        raise ConfigError(
            "`train.precision`: on a CPU, TensorFlow's oneDNN computes wrong bfloat16 gradients of 3D convolutions. "
            "Use float32, set TF_ENABLE_ONEDNN_OPTS=0 before Python starts (slower), or use another backend."
        )


def uses_xla(jit: str) -> bool:
    """Whether to compile with XLA, given `train.jit`.

    With "auto", always on JAX, which is slow without it; on TensorFlow only on an accelerator, because on a CPU XLA's
    3D convolutions take about 5 times as long as TensorFlow's own.
    """
    if jit == "auto":
        return keras.backend.backend() == "jax" or (keras.backend.backend() == "tensorflow" and has_accelerator())
    return jit == "on"
