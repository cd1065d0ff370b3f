"""Measure the HDC step on a GPU: clips/s, achieved TFLOP/s and peak memory by batch size, precision and memory option.

Command: python benchmarks/gpu.py [--size 16,32,64] [--kind plain --kind torch --kind jax] [--precision mixed_bfloat16]
Cost:    about 2 minutes for PyTorch and 5 for JAX (compilation) on an H100; on a CPU, add --tiny, about a minute.

It needs JAX or PyTorch, Keras and pydantic; neither TensorFlow nor PyAV. Windows come from memory. `plain` is a loop of
the same work in PyTorch (plain_pytorch.py). Each kind and precision runs in a process of its own, and each row is:

- step: median time of a step whose windows are on the device, and clips/s from it;
- TFLOP/s: of the convolutions (three times those of a forward pass; recomputed ones do not count), beside the rate of
  a large bfloat16 matrix product measured in the same process;
- fit: clips/s of `model.fit` with windows from the host's memory, including the copy and all callbacks;
- peak: of the device's allocator, in GiB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path

FRAMES, DECODE_SIZE, VIEW_SIZE, VIEWS = 16, (128, 171), 112, 3
# Multiply-adds of the convolutions of one clip of 16 x 112 x 112, forward, in units of 10^9 (docs/backbones.md).
GIGA_MACS = {"r3d18": 40.7, "r2plus1d18": 40.5}
OPTIONS = {"whole": {}, "cached4": {"micro_batches": 4}, "remat": {"rematerialise": True}}


def matmul_rate(backend):
    """TFLOP/s of an 8192 x 8192 x 8192 bfloat16 matrix product (512 on a CPU)."""
    if backend == "jax":
        import jax

        size = 8192 if jax.default_backend() != "cpu" else 512
        x = jax.random.normal(jax.random.key(0), (size, size), "bfloat16")
        product = jax.jit(lambda x: x @ x)

        def run():
            return product(x).block_until_ready()
    else:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        size = 8192 if device == "cuda" else 512
        x = torch.randn(size, size, dtype=torch.bfloat16, device=device)

        def run():
            x @ x
            synchronise("torch")

    times = []
    for _ in range(12):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[2:]) / 1e12


def synchronise(backend):
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


def peak_gib(backend):
    if backend == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] / 2**30 if stats else float("nan")
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")


def steps_of_hdc(backend, backbone, precision, options, windows, view_size):
    """A function that takes one step on the device's windows, and one that runs `fit` on the host's for some steps."""
    import keras

    from hdc_keras.backbones import build_backbone
    from hdc_keras.config import Length, TrainConfig
    from hdc_keras.model import HDC
    from hdc_keras.training.optimizers import build_optimizer

    keras.config.set_dtype_policy(precision)
    model = HDC(build_backbone(backbone), {"size": view_size})
    model.compile(build_optimizer(TrainConfig(learning_rate=0.01), Length(1000, 200_000)), **options)

    class Repeated(keras.utils.PyDataset):
        def __len__(self):
            return 1000

        def __getitem__(self, number):
            return windows

    if backend == "jax":
        import jax

        on_device = jax.device_put(windows)
    else:
        on_device = keras.ops.convert_to_tensor(windows)
    return (
        lambda: model.train_on_batch(on_device),
        lambda steps: model.fit(Repeated(), steps_per_epoch=steps, verbose=0, shuffle=False),
    )


def steps_of_peer(backbone, precision, windows, view_size):
    import torch
    from plain_pytorch import PlainLoop

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    loop = PlainLoop(backbone, view_size, device, precision == "mixed_bfloat16")
    host = torch.from_numpy(windows)
    on_device = host.to(device)

    def fit(steps):
        for _ in range(steps):
            loss = loop.step(host.to(device, non_blocking=True))
        float(loss)

    return lambda: float(loop.step(on_device)), fit


def measure(arguments):
    """Measure one kind and precision, for all sizes and options, in this process; prints a line of JSON for each."""
    import numpy as np

    kind, precision = arguments.only.split(":")
    backend = "torch" if kind == "plain" else kind
    rate = matmul_rate(backend)
    tiny = arguments.tiny
    frames, decode_size, view_size = (4, (40, 40), 32) if tiny else (FRAMES, DECODE_SIZE, VIEW_SIZE)
    names = ["whole"] if kind == "plain" else arguments.options.split(",")
    for size, name in [(int(size), name) for size in arguments.size.split(",") for name in names]:
        windows = np.random.default_rng(0).integers(0, 256, (size, 2, frames, *decode_size, 3), np.uint8)
        row = {"kind": kind, "precision": precision, "videos": size, "options": name, "matmul": rate}
        try:
            if backend == "torch":
                import torch

                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            if kind == "plain":
                step, fit = steps_of_peer(arguments.backbone, precision, windows, view_size)
            else:
                step, fit = steps_of_hdc(backend, arguments.backbone, precision, OPTIONS[name], windows, view_size)
            step()
            row["first_s"] = time.perf_counter() - began
            step()
            times = []
            for _ in range(arguments.steps):
                began = time.perf_counter()
                step()
                synchronise(backend)
                times.append(time.perf_counter() - began)
            row["step_s"] = statistics.median(times)
            fit(2)
            began = time.perf_counter()
            fit(arguments.steps)
            synchronise(backend)
            row["fit_s"] = (time.perf_counter() - began) / arguments.steps
            row["peak"] = peak_gib(backend)
            if arguments.profile and backend == "torch":
                profile(step)
            del step, fit
        except Exception as error:  # Out of memory has another type on each backend.
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            traceback.print_exc()
        print("ROW " + json.dumps(row), flush=True)


def profile(step):
    """Print where a step of PyTorch spends its time."""
    import torch
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=activities) as found:
        step()
    key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=22, max_name_column_width=70), file=sys.stderr)


def print_row(row, macs):
    label = f"{row['kind']:6s} {row['precision']:14s} {row['videos']:4d} videos {row['options']:8s}"
    if "error" in row:
        print(f"{label} {row['error']}", flush=True)
        return
    clips = row["videos"] * VIEWS
    flops = 3 * 2 * macs * 1e9 * clips / row["step_s"] / 1e12 if macs else float("nan")
    print(
        f"{label} step {row['step_s'] * 1e3:8.1f} ms {clips / row['step_s']:8.1f} clips/s {flops:6.1f} TFLOP/s "
        f"({flops / row['matmul']:5.1%} of {row['matmul']:.0f}) fit {clips / row['fit_s']:8.1f} clips/s "
        f"peak {row['peak']:6.2f} GiB first {row['first_s']:5.1f} s",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=None, help="default: r3d18, or r3d_tiny with --tiny")
    parser.add_argument("--kind", action="append", choices=["plain", "torch", "jax"], help="default: all")
    parser.add_argument("--precision", action="append", choices=["float32", "mixed_bfloat16"], help="default: both")
    parser.add_argument("--size", default="8,32,64", help="videos per step")
    parser.add_argument("--options", default="whole", help=f"of {', '.join(OPTIONS)}")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a tiny network and tiny clips, to try this on a CPU")
    parser.add_argument("--profile", action="store_true", help="PyTorch: print the costliest operations")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each kind and precision")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.backbone = arguments.backbone or ("r3d_tiny" if arguments.tiny else "r3d18")
    if arguments.only:
        measure(arguments)
        return
    for kind in arguments.kind or ["plain", "torch", "jax"]:
        for precision in arguments.precision or ["mixed_bfloat16", "float32"]:
            backend = "torch" if kind == "plain" else kind
            command = [sys.executable, __file__, *sys.argv[1:], "--only", f"{kind}:{precision}"]
            folder = str(Path(__file__).resolve().parent.parent)
            path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path}
            try:
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=arguments.timeout
                )
                output, errors, code = done.stdout, done.stderr, done.returncode
            except subprocess.TimeoutExpired as error:
                output, errors, code = (error.stdout or b"").decode(), f"stopped after {arguments.timeout} s", 1
            for line in output.splitlines():
                if line.startswith("ROW "):
                    print_row(json.loads(line[4:]), None if arguments.tiny else GIGA_MACS.get(arguments.backbone))
            if code or arguments.profile or "Traceback" in errors:
                print(errors[-6000:], flush=True)


if __name__ == "__main__":
    main()
