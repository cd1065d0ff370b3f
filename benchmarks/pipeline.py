"""Measure windows per second on one core: this package's pipeline (shards and files) and other decoders.

Command: python benchmarks/pipeline.py [--data PATH] [--rounds 3] [--wait [--steps N]]
Needs:   pip install decord opencv-python-headless   (a missing decoder is named and left out)
Cost:    about 1 minute for moving shapes; with --wait, about 7 minutes on 2 cores.

All candidates are pinned to one core and produce the same windows (2 x 16 frames at 128 x 171) of the same videos in
the same order, one video at a time. The package's pipeline runs with one worker. The other decoders run in the simple
loops found in public code: PyAV and OpenCV decode from the start to the last needed frame; decord seeks. Each round
runs every candidate once. Ratios are taken within rounds, and their medians are printed. In the environment of
`.ci/run-tfio`, where tensorflow-io works, `data.decoder: tfio` takes part.

--wait instead measures the share of a training step spent waiting for its batch, with the pipeline on all cores, on the
active backend.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import av
import numpy as np

from hdc_keras.config import DataConfig
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.decoding import count_frames
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
from hdc_keras.data.pipeline import windows_dataset
from hdc_keras.data.preparing import prepare
from hdc_keras.data.sampling import WindowSpec
from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes
from hdc_keras.errors import ConfigError

SPEC = WindowSpec(frames=16, stride=2, min_gap=8, strides=(2,))
SIZE = (128, 171)
BATCH = 8


def loader_of(path, decoder="pyav"):
    """A loader of all videos at a path, without a cache of decoded frames."""
    records = sorted(read_dataset(DataConfig(path=str(path))).records, key=lambda record: record.video_id)
    failures = DecodeFailures(len(records), 1.0)
    return WindowLoader(records, SPEC, FrameStore(SIZE, 0.0, decoder), failures, BATCH, seed=0)


def pipeline_rate(loader, workers=1):
    """Windows per second of the package's pipeline over one epoch."""
    dataset = iter(windows_dataset(loader, workers=workers))
    next(dataset)  # The first batch includes building the graph.
    began = time.perf_counter()
    for _ in range(loader.steps_per_epoch):
        next(dataset).numpy()
    return 2 * loader.steps_per_epoch * loader.batch_size / (time.perf_counter() - began)


def peer_rate(loader, read):
    """Windows per second of another decoder over the same windows."""
    counts = np.array([count_frames(record.path) for record in loader.records])
    began = time.perf_counter()
    for step in range(loader.steps_per_epoch):
        for row, windows in zip(*loader.plan(step, counts), strict=True):
            needed, places = np.unique(windows, return_inverse=True)
            frames = read(loader.records[row].path, needed.tolist())
            assert frames[places].reshape(2, 16, *SIZE, 3).dtype == np.uint8
    return 2 * loader.steps_per_epoch * loader.batch_size / (time.perf_counter() - began)


def read_with_pyav(path, needed):
    frames, wanted = {}, set(needed)
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for position, frame in enumerate(container.decode(video=0)):
            if position in wanted:
                frames[position] = frame.to_ndarray(format="rgb24", width=SIZE[1], height=SIZE[0])
            if len(frames) == len(wanted):
                break
    return _filled(frames, needed)


def read_with_opencv(path, needed):
    import cv2

    capture, frames, wanted = cv2.VideoCapture(path), {}, set(needed)
    for position in range(needed[-1] + 1):
        if not capture.grab():
            break
        if position in wanted:
            resized = cv2.resize(capture.retrieve()[1], (SIZE[1], SIZE[0]))
            frames[position] = cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)
    capture.release()
    return _filled(frames, needed)


def read_with_decord(path, needed):
    import decord

    reader = decord.VideoReader(path, width=SIZE[1], height=SIZE[0], num_threads=1)
    return reader.get_batch([min(position, len(reader) - 1) for position in needed]).asnumpy()


def _filled(frames, needed):
    """Stack the needed frames. Some containers state more frames than decode; the last frame replaces missing ones."""
    last = frames[max(frames)]
    return np.stack([frames.get(position, last) for position in needed])


PEERS = {"plain PyAV": read_with_pyav, "OpenCV": read_with_opencv, "decord": read_with_decord}


def available_peers():
    """Decoders that are installed, limited to one thread."""
    peers = dict(PEERS)
    for name, module in (("OpenCV", "cv2"), ("decord", "decord")):
        try:
            imported = __import__(module)
        except ImportError:
            print(f"{name} is not installed and is left out")
            del peers[name]
        else:
            if module == "cv2":
                imported.setNumThreads(1)
                os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "threads;1"
    return peers


def wait_share(loader, backbone, size, steps):
    """Share of the training time that `fit` waits for batches, after its first step, on the active backend."""
    import keras

    from hdc_keras import HDC
    from hdc_keras.backbones import build_backbone
    from hdc_keras.config import TrainConfig
    from hdc_keras.training.batches import Batches
    from hdc_keras.training.distribution import Distribution

    class FromFirstStep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                self.waited, self.began = batches.waited(), time.perf_counter()

    train = TrainConfig(strategy="one_device", batch_size=loader.batch_size)
    batches, since = Batches(loader, None, None, Distribution(train)), FromFirstStep()
    model = HDC(build_backbone(backbone), views={"size": size})
    model.compile(keras.optimizers.SGD(1e-3))
    model.fit(batches.from_step(0), steps_per_epoch=steps + 1, verbose=0, shuffle=False, callbacks=[since])
    seconds = time.perf_counter() - since.began
    print(f"{seconds / steps:.3f} s for each of {steps} steps; waited {since.waited:.2f} s for the first")
    return (batches.waited() - since.waited) / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of videos or manifest; default: moving shapes")
    parser.add_argument("--rounds", type=int, default=3, help="number of times that every candidate is measured")
    parser.add_argument(
        "--wait", action="store_true", help="instead measure the share of a step spent waiting for data"
    )
    parser.add_argument("--backbone", help="with --wait: r3d_tiny or r3d18; default: both, one after the other")
    parser.add_argument("--steps", type=int, help="with --wait: timed steps; default: 60 of r3d_tiny, 4 of r3d18")
    arguments = parser.parse_args()
    files = loader_of(arguments.data or ensure_moving_shapes(MovingShapes()).parent)
    print(f"{len(files.records)} videos, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        report = prepare(files.records, Path(folder), size=SIZE)
        print(f"prepared once, in {time.perf_counter() - began:.0f} s: {report['bytes'] / 1e6:.0f} MB", flush=True)
        shards = loader_of(folder)
        if arguments.wait:
            for backbone, size, steps in (("r3d_tiny", 32, 60), ("r3d18", 112, 4)):
                if arguments.backbone not in (None, backbone):
                    continue
                shares = {
                    name: wait_share(loader, backbone, size, arguments.steps or steps)
                    for name, loader in (("shards", shards), ("files", files))
                }
                print(f"{backbone:9} waits " + ", ".join(f"{share:.1%} with {name}" for name, share in shares.items()))
            return
        # OpenCV's decoder starts several threads even when limited to one, so the process is pinned to one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        candidates = {"shards": lambda: pipeline_rate(shards), "files": lambda: pipeline_rate(files)}
        try:
            tfio = loader_of(arguments.data or ensure_moving_shapes(MovingShapes()).parent, decoder="tfio")
            candidates["files, tfio"] = lambda: pipeline_rate(tfio)
        except ConfigError as error:
            print(f"tfio is left out: {error}")
        candidates |= {name: lambda read=read: peer_rate(files, read) for name, read in available_peers().items()}
        rounds = [{name: measure() for name, measure in candidates.items()} for _ in range(arguments.rounds)]
    peers = [name for name in candidates if name in PEERS]
    best_peer = max(peers, key=lambda name: statistics.median(rates[name] for rates in rounds))
    best_rates = [rates[best_peer] for rates in rounds]
    for name in candidates:
        rate = statistics.median(rates[name] for rates in rounds)
        ratio = statistics.median(rates[name] / best_rate for rates, best_rate in zip(rounds, best_rates, strict=True))
        print(f"{name:12} {rate:8.1f} windows/s   {ratio:5.2f} x {best_peer}, the best peer")


if __name__ == "__main__":
    main()
