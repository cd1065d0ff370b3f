"""The devices of this machine, and what the active backend can do on them."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras

from hdc_keras.errors import ConfigError


def list_devices() -> list[str]:
    """Devices that the active Keras backend sees, as in `["cpu:0"]`. CPUs are left out if there is an accelerator.

    `keras.distribution.list_devices` is used only on JAX: it does not list PyTorch's devices, and it initialises
    TensorFlow's, after which the process cannot join a cluster.
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
    """Peak memory so far in GiB, and whose it is: the first accelerator's, or this process's if there is none.

    It is NaN where the system does not measure a process, as on Windows.
    """
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
    try:
        import resource
    except ImportError:  # Windows
        return float("nan"), "not measured on this system"
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "of this process"


def device_memory() -> tuple[int, str]:
    """Memory in bytes that a step can use at most, and whose it is, worded as in "of the GPU"; 0 if it is unknown."""
    backend = keras.backend.backend()
    if not has_accelerator():
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "of this machine"
        except (AttributeError, ValueError, OSError):  # Windows
            return 0, "of this machine"
    if backend == "torch":
        import torch

        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory), "of the GPU"
    if backend == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        return int(stats.get("bytes_limit", 0)), "of the first device, as far as JAX reserves it"
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        return int(found[0]) * 2**20, "of the first GPU"
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return 0, "of the first GPU"


def uses_cuda() -> bool:
    """Whether the active backend is PyTorch on a GPU."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    return torch.cuda.is_available()


def move_to_device(x: Any) -> Any:
    """A tensor of PyTorch on the CPU -> on the GPU, if there is one, without waiting for it. Other tensors stay."""
    return x.pin_memory().to("cuda", non_blocking=True) if uses_cuda() and x.device.type == "cpu" else x


def without_waiting_for_constants() -> AbstractContextManager[Any]:
    """On PyTorch with a GPU: numbers and numpy arrays become tensors without waiting for the GPU.

    `torch.as_tensor(1.0, device="cuda")`, which Keras calls for most constants of its operations, copies from pageable
    memory, for which PyTorch waits until the GPU has done everything before. In an HDC step these are hundreds.
    """
    if not uses_cuda():
        return nullcontext()
    import torch
    from torch.overrides import TorchFunctionMode

    class Constants(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            options = options or {}
            device = options.get("device")
            if function is torch.as_tensor and device is not None and torch.device(device).type == "cuda":
                value, dtype = arguments[0], options.get("dtype")
                if isinstance(value, bool | int | float):
                    return torch.full((), value, dtype=dtype, device=device)
                if not isinstance(value, torch.Tensor):
                    return torch.as_tensor(value, dtype=dtype).pin_memory().to(device, non_blocking=True)
            return function(*arguments, **options)

    return Constants()


def usable_cores() -> int:
    """Processor cores that this process may use; on macOS and Windows, all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int | None:
    """Memory of the machine in bytes, or `None` where it is unknown, as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def make_deterministic() -> None:
    """Make the backend's operations bit-identical from run to run.

    JAX is deterministic on a CPU or TPU. On a GPU it needs `XLA_FLAGS=--xla_gpu_deterministic_ops=true` before Python
    starts; this function cannot set that. On PyTorch, call it before the first operation on a GPU.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        # Without it, PyTorch refuses every matrix product on a GPU. A value that the user has set is kept.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def refuse_wrong_gradients(network: keras.Model) -> None:
    """Refuse to train in bfloat16 on a CPU with oneDNN, where gradients are known to be wrong.

    In TensorFlow 2.21 and PyTorch 2.13, oneDNN's bfloat16 kernel for the filter gradient of a padded 3D convolution
    reads uninitialised memory if its input has two frames, as it does in the last stage of most 3D networks. In
    float32, or without oneDNN, gradients are right (tests/test_devices.py).

    Args:
        network: the network to train.

    Raises:
        ConfigError: gradients would be wrong.
    """
    in_bfloat16 = any(
        isinstance(layer, keras.layers.Conv3D) and layer.compute_dtype == "bfloat16" for layer in network.layers
    )
    if in_bfloat16 and not has_accelerator() and _uses_onednn():
        without = {
            "tensorflow": "set TF_ENABLE_ONEDNN_OPTS=0 before Python starts (slower)",
            "torch": "call torch.backends.mkldnn.set_flags(False) in a script (slower)",
        }
        raise ConfigError(
            "`train.precision`: on a CPU, oneDNN computes wrong bfloat16 gradients of 3D convolutions. Use float32, "
            f"or {without[keras.backend.backend()]}."
        )


def _uses_onednn() -> bool:
    """Whether the backend computes on a CPU with oneDNN."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return keras.backend.backend() == "tensorflow" and os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0"


def warn_of_slow_convolutions() -> None:
    """Warn if TensorFlow was imported before this package, which would have turned oneDNN on (`hdc_keras/__init__.py`).

    Without oneDNN, the gradient of a 3D convolution with strides took up to 80 times as long on a CPU without AVX-512.
    """
    if keras.backend.backend() != "tensorflow" or "TF_ENABLE_ONEDNN_OPTS" in os.environ or has_accelerator():
        return
    from tensorflow.python.util import _pywrap_util_port  # the public API does not tell

    if not _pywrap_util_port.IsMklEnabled():
        warnings.warn(
            "keras or tensorflow was imported before hdc_keras, and oneDNN is off on this CPU: training takes several "
            "times as long. Put `import hdc_keras` first, or set TF_ENABLE_ONEDNN_OPTS=1 before Python starts (0 keeps "
            "oneDNN off without this warning).",
            stacklevel=3,
        )


def require_compiler(jit: bool) -> None:
    """Refuse to compile a step on PyTorch. torch.compile had not finished the step of a tiny network after 150 s on two
    cores, and without it the step is as fast as a plain loop.

    Raises:
        ConfigError: `jit` is true on PyTorch.
    """
    if jit and keras.backend.backend() == "torch":
        raise ConfigError(
            "`train.jit`: on: there is no XLA on PyTorch, and torch.compile does not support the step. Use `auto` or "
            "`off`, which run PyTorch's own kernels, or another backend."
        )


def uses_xla(jit: str) -> bool:
    """Whether to compile with XLA, given `train.jit`.

    "auto" means yes on JAX, which is slow without XLA; on TensorFlow only with an accelerator, because on a CPU XLA's
    3D convolutions take about 5 times as long as TensorFlow's; and no on PyTorch.
    """
    if jit == "auto":
        return keras.backend.backend() == "jax" or (keras.backend.backend() == "tensorflow" and has_accelerator())
    return jit == "on"


def warning_of_slow_precision(precision: str) -> str | None:
    """A warning for the user if a precision is slow on this machine; `None` if it is not."""
    if precision != "mixed_float16" or has_accelerator():
        return None
    return (
        "`train.precision`: mixed_float16 is made for GPUs. On this CPU, a step takes up to 70 times as long as in "
        "float32."
    )


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Layers that are created in this context get the dtype policy `name`, such as "mixed_bfloat16"."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
