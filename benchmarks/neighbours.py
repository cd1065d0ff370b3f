"""Measure seconds and peak memory of the protocols `knn` and `retrieval` at the size of Kinetics-400.

Command: python benchmarks/neighbours.py [--training 240000] [--test 20000] [--channels 512] [--columns 5]
Cost:    about 10 minutes on 2 cores, and 4 GB of memory.

The features are random, because neither time nor memory depends on their values. Each label column has 400 classes. The
peak memory includes the features. CPU seconds are of all threads: divided by the cores, they say how long it takes on a
machine that does nothing else. At the end, the neighbours of 200 queries are compared with a full sort of all cosines.
"""

import argparse
import resource
import time

import numpy as np

from hdc_keras.config import EvaluateConfig
from hdc_keras.data.records import VideoRecord
from hdc_keras.features.video_features import VideoFeatures, joined
from hdc_keras.probes.nearest_neighbours import nearest_neighbours
from hdc_keras.probes.registry import judge

CLASSES = 400


def random_features(training, test, channels, columns):
    """Features of videos with random labels."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, (training + test, columns))
    records = [
        VideoRecord(
            f"{number}.mp4",
            f"{number}",
            {f"column{column}": f"class {label}" for column, label in enumerate(row)},
            "train" if number < training else "test",
        )
        for number, row in enumerate(labels.tolist())
    ]
    arrays = {"P5": random.standard_normal((training + test, channels), np.float32)}
    return VideoFeatures(records, arrays, len(records), {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=240_000, help="training videos, which form the gallery")
    parser.add_argument("--test", type=int, default=20_000, help="test videos, which are the queries")
    parser.add_argument("--channels", type=int, default=512, help="channels of the features")
    parser.add_argument("--columns", type=int, default=5, help="label columns")
    arguments = parser.parse_args()
    features = random_features(arguments.training, arguments.test, arguments.channels, arguments.columns)
    print(f"features  {_peak_gb():.1f} GB")
    for protocol in ("knn", "retrieval"):
        began, began_cpu = time.perf_counter(), time.process_time()
        answers = judge(protocol, features, {"features": ["P5"]}, EvaluateConfig())
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        print(
            f"{protocol}  {len(answers)} label columns  {seconds:.0f} s  {cpu_seconds:.0f} CPU s  "
            f"peak memory so far {_peak_gb():.1f} GB",
            flush=True,
        )
    compare_with_dense(features, queries=min(200, arguments.test))


def compare_with_dense(features, queries):
    """Compare the 50 nearest neighbours of some queries with a full sort of all their cosines."""
    gallery, tests = joined(features.of_split("train"), features.of_split("test"), ["P5"])
    near = nearest_neighbours(tests[:queries], gallery, 50)
    lengths = np.linalg.norm(tests[:queries], axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    cosines = tests[:queries] @ gallery.T / lengths
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :50]
    same = (near.positions == order).mean()
    error = np.abs(near.cosines - np.take_along_axis(cosines, order, axis=1)).max()
    print(f"{queries} queries against a full sort: {100 * same:.2f} % of neighbours equal, cosines to {error:.0e}")


def _peak_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
