"""Windows per second of the tf.data pipeline, beside plain PyAV decoding of the same frames in one thread.

Command: python benchmarks/pipeline.py [--data PATH] [--rounds 3]

Both produce the same windows (2 x 16 frames at 128 x 171) of the same videos in the same order: the pipeline from files
with its index, seeking and parallel decoding; the plain loop opens each file, decodes from its start until the last
needed frame, and converts the needed ones. Memory for decoded frames is off: this measures decoding.
A last line has it on.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import av
import numpy as np

from hdc_keras.data.decoding import count_frames
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
from hdc_keras.data.pipeline import windows_dataset
from hdc_keras.data.records import read_records
from hdc_keras.data.sampling import WindowSpec, epoch_order, sample_windows
from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes

SPEC = WindowSpec(frames=16, stride=2, min_gap=8, strides=(2,))
SIZE = (128, 171)
BATCH = 8


def pipeline_rate(records, store):
    dataset = windows_dataset(WindowLoader(records, SPEC, store, DecodeFailures(len(records), 1.0), BATCH, seed=0))
    steps = len(records) // BATCH
    began = time.perf_counter()
    checksum = 0
    for batch in dataset.take(steps):
        checksum += int(batch.numpy()[:, :, 0, 0, 0].sum())
    return 2 * steps * BATCH / (time.perf_counter() - began)


def plain_rate(records):
    count = len(records) // BATCH * BATCH
    began = time.perf_counter()
    for place in epoch_order(0, 0, len(records))[:count]:
        record = records[place]
        wanted = sample_windows(0, 0, record.video_id, count_frames(record.path), SPEC)
        needed, frames = set(wanted.ravel().tolist()), {}
        with av.open(record.path) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for position, frame in enumerate(container.decode(video=0)):
                if position in needed:
                    frames[position] = frame.to_ndarray(format="rgb24", width=SIZE[1], height=SIZE[0])
                if len(frames) == len(needed):
                    break
        last = frames[max(frames)]
        np.stack([frames.get(position, last) for position in wanted.ravel().tolist()])
    return 2 * count / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of videos or CSV manifest; moving shapes when not given")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    records = read_records(arguments.data or ensure_moving_shapes(MovingShapes()))
    for record in records:
        count_frames(record.path)  # both know the lengths before the clock starts
    rounds = [(pipeline_rate(records, FrameStore(SIZE, 0.0)), plain_rate(records)) for _ in range(arguments.rounds)]
    pipeline, plain = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    print(f"{len(records)} videos, {os.cpu_count()} cores")
    print(f"pipeline from files        {pipeline:8.1f} windows/s   {ratio:.2f} x plain")
    print(f"plain PyAV, one thread     {plain:8.1f} windows/s")
    store = FrameStore(SIZE, 16.0)
    pipeline_rate(records, store)
    kept = pipeline_rate(records, store)
    print(f"pipeline, frames in memory {kept:8.1f} windows/s   {kept / plain:.2f} x plain")


if __name__ == "__main__":
    main()
