"""Measure what a prepared set costs to read: bytes for each window, and windows per second on one core.

Command: python benchmarks/reading.py [--frames 300] [--videos 64] [--rounds 3]
Cost:    about 2 minutes, and 300 MB of disk.

Videos of 128 x 171 pixels are written to shards: JPEG of quality 90, textures that move. `needed frames` reads what a
clip needs, by the table of frames in each record. `whole records` reads the same set without the tables, as sets of
version 0.1.0 are read. Bytes are counted where the files are read. `in memory` reads files that the operating system
has cached; `from disk` asks it to drop them before each round.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import io

import numpy as np
from PIL import Image

from hdc_keras.data import storage
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowBatches, WindowLoader
from hdc_keras.data.pipeline import windows_dataset
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.sampling import WindowSpec
from hdc_keras.data.shards import EncodedVideo, stored_video, write_shard

SIZE = (128, 171)
BATCH = 8


def encoded(frames, generator):
    """A moving texture as JPEG, about 8 kB for each frame."""
    height, width = SIZE
    coarse = Image.fromarray(generator.integers(0, 256, (24, 64, 3), np.uint8)).resize((2 * width, height))
    texture = np.asarray(coarse).astype(int) + generator.integers(-12, 13, (height, 2 * width, 3))
    texture = texture.clip(0, 255).astype(np.uint8)
    jpegs = []
    for number in range(frames):
        buffer = io.BytesIO()
        Image.fromarray(texture[:, number % width :][:, :width].copy()).save(buffer, "JPEG", quality=90)
        jpegs.append(buffer.getvalue())
    return EncodedVideo(jpegs, SIZE, 25.0)


def write_set(folder, videos, frames):
    """Write shards of 16 videos, and return the records."""
    generator = np.random.default_rng(0)
    records = []
    for first in range(0, videos, 16):
        shard = folder / f"shard-{first}.tfrecord"
        names = [f"{number}.mp4" for number in range(first, min(first + 16, videos))]
        index = write_shard(shard, [(VideoRecord(name, name), encoded(frames, generator)) for name in names])
        records += [VideoRecord(v["path"], v["video_id"], stored=stored_video(str(shard), v)) for v in index["videos"]]
    return records


def loader_of(records, spec):
    return WindowLoader(records, spec, FrameStore(SIZE, 0.0), DecodeFailures(len(records), 0.1), BATCH, seed=0)


def bytes_per_video(records, spec):
    """Bytes that are read for the windows of a video: the mean over an epoch."""
    read, spans_of = [], storage.read_spans

    def counting(path, spans):
        blocks = spans_of(path, spans)
        read.append(sum(map(len, blocks)))
        return blocks

    storage.read_spans = counting
    try:
        loader = loader_of(records, spec)
        for position in range(len(records)):
            loader.load(position)
    finally:
        storage.read_spans = spans_of
    return sum(read) / len(records)


def forget(records):
    """Ask the operating system to drop the shards from its cache."""
    for shard in {record.stored.shard for record in records}:
        with Path(shard).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(records, spec, reader, is_cached):
    """Windows per second over one epoch, with one worker."""
    loader = loader_of(records, spec)
    if reader == "tf.data":
        batches = iter(windows_dataset(loader, workers=1))
    else:
        dataset = WindowBatches(loader, workers=1)
        batches = (dataset[step] for step in range(loader.steps_per_epoch + 1))
    next(batches)  # builds the graph
    if not is_cached:
        forget(records)
    began = time.perf_counter()
    for _ in range(loader.steps_per_epoch):
        next(batches)
    return spec.windows * loader.steps_per_epoch * BATCH / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300, help="frames of each video")
    parser.add_argument("--videos", type=int, default=64, help="number of videos")
    parser.add_argument("--rounds", type=int, default=3, help="number of times that every candidate is timed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # /tmp may be in memory
        table = write_set(Path(folder), arguments.videos, arguments.frames)
        whole = [replace(record, stored=replace(record.stored, table=0)) for record in table]
        sets = {"needed frames": table, "whole records": whole}
        size = statistics.mean(record.stored.size for record in table)
        print(f"{len(table)} videos of {arguments.frames} frames, {size / arguments.frames / 1e3:.1f} kB each")
        for name, spec in {
            "one window of 16 frames": WindowSpec(16, 1, windows=1),
            "one window, stride 2": WindowSpec(16, 2, windows=1, strides=(2,)),
            "a pair of windows": WindowSpec(16, 1, min_gap=8, strides=(1,)),
            "a pair, stride 2": WindowSpec(16, 2, min_gap=8, strides=(2,)),
        }.items():
            before, after = (bytes_per_video(sets[key], spec) for key in ("whole records", "needed frames"))
            print(f"{name:24} {before / 1e3:7.0f} kB before, {after / 1e3:5.0f} kB after: {before / after:5.1f} x less")
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        spec = WindowSpec(16, 2, min_gap=8, strides=(2,))
        for reader in ("tf.data", "threads"):
            for is_cached in (True, False):
                rounds = [
                    {name: rate(records, spec, reader, is_cached) for name, records in sets.items()}
                    for _ in range(arguments.rounds)
                ]
                before, after = (
                    statistics.median(one[key] for one in rounds) for key in ("whole records", "needed frames")
                )
                ratio = statistics.median(one["needed frames"] / one["whole records"] for one in rounds)
                where = "in memory" if is_cached else "from disk"
                print(
                    f"{reader:8} {where}   whole records {before:7.1f} windows/s   needed frames {after:7.1f}   "
                    f"{ratio:5.2f} x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
