"""Measure videos per second of `prepare` with 1 and 2 workers: processes of one command, and workers on Ray.

Command: python benchmarks/workers.py [--workers 1 2] [--videos 96] [--rounds 3] [--on ray]
Cost:    about 5 minutes on 2 cores. Needs: pip install -e '.[ray]'

The videos have 90 noisy frames of 320 x 240. Each round prepares all of them with every number of workers, here and on
the cluster. The rate is taken from the first finished video to the last, so it leaves out the start of the workers,
which is printed beside it. Ratios are taken within rounds, and their medians are printed. Every set must have the same
bytes, or the command fails.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from hdc_keras.data.preparing import prepare
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.synthetic import write_video
from hdc_keras.engines import engine_on

DIFFERENT_VIDEOS = 4


def write_videos(folder: Path, count: int) -> list[VideoRecord]:
    """Write a few videos, and link to them under many names."""
    generator = np.random.default_rng(0)
    for number in range(DIFFERENT_VIDEOS):
        write_video(folder / f"{number}.mp4", generator.integers(0, 255, (90, 240, 320, 3), dtype=np.uint8))
    for number in range(DIFFERENT_VIDEOS, count):
        (folder / f"{number}.mp4").hardlink_to(folder / f"{number % DIFFERENT_VIDEOS}.mp4")
    return [VideoRecord(str(folder / f"{number}.mp4"), f"{number:04}") for number in range(count)]


def measure(records: list[VideoRecord], out: Path, workers: int, engine) -> tuple[float, float]:
    """Prepare the videos. Returns videos per second, and the seconds until the first one was finished."""
    began, seen = time.perf_counter(), []
    prepare(
        records,
        out,
        videos_per_shard=4,
        processes=workers,
        engine=engine,
        progress=lambda done, total, failed: seen.append((time.perf_counter(), done)),
    )
    (first, before), (last, done) = next(one for one in seen if one[1]), seen[-1]
    return (done - before) / (last - first), first - began


def main() -> None:
    """Measure, and print a line for each place and number of workers."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument("--videos", type=int, default=96)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--on", default="ray", help="the cluster, as for `hdc-keras prepare --on`")
    asked = options.parse_args()
    cases = [(place, workers) for place in ("here", asked.on) for workers in asked.workers]
    rates: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    contents = set()
    with tempfile.TemporaryDirectory() as name, engine_on(asked.on) as cluster:
        records = write_videos(Path(name), asked.videos)
        for number in range(asked.rounds):
            for place, workers in cases:
                out = Path(name) / f"{number}-{workers}-{place.replace('/', '')}"
                engine = None if place == "here" else cluster
                rates[place, workers].append(measure(records, out, workers, engine))
                contents.add(tuple(path.read_bytes() for path in sorted(out.iterdir())))
    for place, workers in cases:
        measured = rates[place, workers]
        ratios = [rate / rates[place, asked.workers[0]][number][0] for number, (rate, _) in enumerate(measured)]
        rate, start = (statistics.median(values) for values in zip(*measured, strict=True))
        print(
            f"{place}, {workers} workers: {rate:.1f} videos/s, {statistics.median(ratios):.2f} times that of "
            f"{asked.workers[0]}; first video after {start:.0f} s"
        )
    if len(contents) != 1:
        raise SystemExit("the prepared sets differ")
    print("all sets have the same bytes")


if __name__ == "__main__":
    main()
