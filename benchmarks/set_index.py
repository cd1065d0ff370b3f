"""Measure seconds and memory to read a large prepared set: its one index, beside the index of every shard.

Command: python benchmarks/set_index.py [--records 100000 1000000] [--only-index]
Cost:    about 2 minutes and 1 GB of disk for 1,000,000 records; 10 minutes and 8 GB of memory for 10,000,000, with
         --only-index.

A made set has 64 videos in each shard, 400 classes and groups of ten. Its shards are empty files of the right sizes,
which take no space. A new process reads its records; imports do not count. `every shard` reads the JSON file of each
shard, as sets of version 0.1.0 are read. On a busy machine, compare the seconds on the CPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from hdc_keras.data.set_index import SET_INDEX, index_writer
from hdc_keras.data.shards import SET_FILE, PreparedSet, index_path, read_prepared

PER_SHARD = 64
BYTES, FRAMES = 2_500_000, 300


def index_of(shard, records):
    """The index of a shard, as `write_shard` makes it."""
    videos = []
    for number in range(shard * PER_SHARD, min((shard + 1) * PER_SHARD, records)):
        group = number // 10
        videos.append(
            {
                "path": f"/data/videos/class {group % 400}/video-{number:08d}.mp4",
                "video_id": f"class {group % 400}/video-{number:08d}.mp4",
                "labels": {"label": f"class {group % 400}"},
                "split": "test" if group % 10 == 0 else "train",
                "group": f"group {group}",
                "offset": number % PER_SHARD * BYTES,
                "size": BYTES,
                "frames": FRAMES,
                "rate": 25.0,
                "table": 320,
                "height": 128,
                "width": 171,
            }
        )
    return {"videos": videos, "failed": [], "bytes": len(videos) * BYTES, "sha256": "0" * 64}


def write_set(folder, records, with_shard_indexes):
    """Write the files of a set of that many records."""
    prepared = PreparedSet(records, PER_SHARD, (128, 171), 90, None, "made")
    (folder / SET_FILE).write_text(json.dumps(asdict(prepared)))
    with index_writer(folder / SET_INDEX, prepared.listing) as add:
        for number in range(prepared.shards):
            index, shard = index_of(number, records), folder / prepared.shard_name(number)
            add(number, index)
            with shard.open("wb") as file:
                file.truncate(index["bytes"])
            if with_shard_indexes:
                Path(index_path(str(shard))).write_text(json.dumps(index, indent=1))


def measure(folder):
    """Print seconds and peak memory as JSON. Meant to run in a new process."""
    import pyarrow.parquet  # noqa: F401

    before = peak_bytes()
    began, cpu_began = time.perf_counter(), time.process_time()
    records, _ = read_prepared(folder)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    print(json.dumps({"records": len(records), "seconds": seconds, "cpu": cpu, "bytes": peak_bytes() - before}))


def peak_bytes():
    """Peak resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measured(folder):
    done = subprocess.run(
        [sys.executable, __file__, "--measure", folder], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def figures(found):
    return f"{found['seconds']:6.1f} s, {found['cpu']:5.1f} s of them on the CPU, {found['bytes'] / 2**30:.2f} GiB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000], help="sizes of the sets")
    parser.add_argument("--only-index", action="store_true", help="leave out the indexes of the shards")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    for records in arguments.records:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            began = time.perf_counter()
            write_set(folder, records, not arguments.only_index)
            size = (folder / SET_INDEX).stat().st_size
            print(f"{records:,} records: made in {time.perf_counter() - began:.0f} s", flush=True)
            found = measured(name)
            print(f"  {SET_INDEX} {figures(found)} ({size / 1e6:.0f} MB on disk)", flush=True)
            if not arguments.only_index:
                (folder / SET_INDEX).unlink()
                print(f"  every shard   {figures(measured(name))}", flush=True)


if __name__ == "__main__":
    main()
