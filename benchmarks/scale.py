"""Measure seconds and memory from the start of a process to its first batch, for large manifests.

Command: python benchmarks/scale.py [--records 10000 100000 1000000] [--figure docs/images/scale.png]
Cost:    about 1 minute on 2 cores, and 2 GiB of memory for 1,000,000 records.

Each manifest is a CSV file (path, label, group, video_id) with 400 classes and groups of ten records. Its files are
hard links to a few videos. A new process reads it, holds out test videos by group, shuffles, and decodes the first
batch of 64 window pairs. It prints the seconds of each part and its peak resident memory.
"""

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

PARTS = ("imports", "manifest and splits", "first batch")


def write_manifest(path, records):
    """Write a manifest of that many records."""
    from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes

    videos = sorted(ensure_moving_shapes(MovingShapes(1, 1)).parent.rglob("*.mp4"))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "video_id"])
        for number in range(records):
            group = number // 10
            name = f"{number}.mp4"
            if number < len(videos):
                shutil.copy(videos[number], path.parent / name)
            else:
                (path.parent / name).hardlink_to(path.parent / f"{number % len(videos)}.mp4")
            writer.writerow([name, f"class {group % 400}", f"group {group}", f"video {number}"])


def measure(manifest):
    """Print seconds and peak memory as JSON. Meant to run in a new process."""
    began = [time.perf_counter()]
    from hdc_keras.config import Experiment
    from hdc_keras.data.from_experiment import load_videos
    from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
    from hdc_keras.data.pipeline import windows_dataset
    from hdc_keras.data.sampling import WindowSpec

    began.append(time.perf_counter())
    records, _ = load_videos(Experiment.model_validate({"data": {"path": manifest}}))
    train = [record for record in records if record.split == "train"]
    began.append(time.perf_counter())
    loader = WindowLoader(train, WindowSpec(8), FrameStore((32, 32), 0.1), DecodeFailures(len(train), 0.1), 64, 0)
    next(iter(windows_dataset(loader)))
    began.append(time.perf_counter())
    seconds = dict(zip(PARTS, (after - before for before, after in pairwise(began)), strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "bytes": peak, "train": len(train), "records": len(records)}))


def draw(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    sizes = list(results)
    for part in PARTS:
        left.plot(sizes, [results[size]["seconds"][part] for size in sizes], "o-", label=part)
    left.set(xscale="log", yscale="log", xlabel="records", ylabel="seconds")
    left.legend()
    right.plot(sizes, [results[size]["bytes"] / 2**30 for size in sizes], "o-")
    right.set(xscale="log", xlabel="records", ylabel="peak resident memory, GiB", ylim=(0, 2))
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="manifest sizes")
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for records in arguments.records:
            manifest = Path(folder) / str(records) / "manifest.csv"
            manifest.parent.mkdir()
            write_manifest(manifest, records)
            command = [sys.executable, __file__, "--measure", str(manifest)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[records] = found = json.loads(done.stdout.splitlines()[-1])
            parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in found["seconds"].items())
            total = sum(found["seconds"].values())
            print(f"{records:9,} records: {total:5.1f} s ({parts}), {found['bytes'] / 2**30:.2f} GiB", flush=True)
    if arguments.figure:
        draw(results, arguments.figure)


if __name__ == "__main__":
    main()
