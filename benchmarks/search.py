"""Compare `search --approximate` with exact search: time and recall.

Command: python benchmarks/search.py [--videos 100000] [--channels 512]
Cost:    about 3 minutes on one core for 100,000 videos, almost all of it for building the index

The vectors are clusters of about 50 with noise, as videos of a class are; each query is a vector of its own near one of
them. Recall is the share of the 10 nearest that the index finds too.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from hdc_keras.data.records import VideoRecord
from hdc_keras.features.vector_table import VectorTable
from hdc_keras.search.approximate import ApproximateIndex
from hdc_keras.search.space import BOTH, SearchSpace

NEAREST = 10
QUERIES = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100_000, help="rows of the table")
    parser.add_argument("--channels", type=int, default=512, help="length of a vector; 1,024 for both tasks by default")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(1, arguments.videos // 50), arguments.channels)).astype("float32")

    def drawn(count: int) -> np.ndarray:
        noise = rng.normal(size=(count, arguments.channels)).astype("float32")
        return centres[rng.integers(0, len(centres), count)] + 0.7 * noise

    records = [VideoRecord(f"{number}.mp4", f"{number}.mp4") for number in range(arguments.videos)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.parquet"
        space = SearchSpace(VectorTable(file, records, {"vectors": drawn(arguments.videos)}, True, {}), BOTH)
        queries = space.vectors_of({"vectors": drawn(QUERIES)})
        began = time.perf_counter()
        index = ApproximateIndex(space, file)
        built, size = time.perf_counter() - began, index.file.stat().st_size
        found, spent = {}, {}
        for name, searched in (("exact", space), ("index", index)):
            began = time.perf_counter()
            found[name] = [searched.nearest(query[None], NEAREST).rows[0] for query in queries]
            spent[name] = (time.perf_counter() - began) / QUERIES
    shared = [len({*exact} & {*other}) / NEAREST for exact, other in zip(found["exact"], found["index"], strict=True)]
    print(
        f"{arguments.videos:,} videos of {arguments.channels} channels: exact {1e3 * spent['exact']:.1f} ms a query, "
        f"index {1e3 * spent['index']:.2f} ms ({spent['exact'] / spent['index']:.0f} times faster), recall of the "
        f"{NEAREST} nearest {np.mean(shared):.3f}; built once in {built:.0f} s, {size / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
