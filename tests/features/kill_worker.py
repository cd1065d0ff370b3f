"""Kills the extraction and the writing of a table at every possible point, and checks that the job can be resumed.

Usage: python kill_worker.py FOLDER. For each file operation of the job (open, rename, remove, ...) there is one round:
a child process is killed with SIGKILL just before the operation, then a second one runs the job to its end. Prints the
number of rounds. test_embedding_table.py runs this in a new process, because a process with threads cannot fork safely.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import VideoDecodeError
from hdc_keras.features import extraction, store
from hdc_keras.features.embedding_table import EmbeddingTable
from hdc_keras.features.video_features import VideoFeatures

RECORDS = [VideoRecord(f"/videos/{number}.mp4", f"{number}.mp4", {"label": "ab"[number % 2]}) for number in range(8)]
FAILED = {"1.mp4": "not a video", "5.mp4": "no frames"}
OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def encode(encoder, asked, experiment, frames, failures, progress=None, keep_views=False):
    """Stands for the network: a vector of four equal numbers for each video that can be decoded."""
    good = [record for record in asked if record.video_id not in FAILED]
    vectors = np.array([[int(record.video_id[0])] * 4 for record in good], np.float32)
    failed = {name: VideoDecodeError(name, FAILED[name]) for name in (r.video_id for r in asked) if name in FAILED}
    failures.by_id.update(failed)
    return VideoFeatures(good, {"P2": vectors} if good else {}, len(asked), failed)


def write_table(file: Path) -> None:
    experiment = Experiment.model_validate({"data": {"max_failed_share": 0.5}})
    table = EmbeddingTable(file, RECORDS, {"P2": 4}, {"weights_sha256": "a"})
    kept = store.FeatureStore(file.parent / "features", None, experiment)
    job = extraction.Extraction(None, RECORDS, experiment, None, kept)
    job.run()
    rows, failures = table.write(job.read)
    assert (rows, [failure["video_id"] for failure in failures]) == (6, ["1.mp4", "5.mp4"])


def run_in_child(file: Path, kill_at: int) -> int:
    """Write the table in a child process that is killed before file operation number `kill_at`, counted from 1.

    Returns:
        The exit code: 0 if it finished first, or the negative number of the signal.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in OPERATIONS or (event == "open" and str(file.parent) in str(arguments[0])):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    status = 1
    try:
        write_table(file)
        status = 0
    finally:
        os._exit(status)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main(folder: Path) -> None:
    extraction.encode_videos, extraction.VIDEOS_PER_PART = encode, 3
    store._made_from = lambda *_: "the stand-in for a network"
    file = folder / "table.parquet"
    folder.mkdir()
    assert run_in_child(file, 0) == 0
    expected = files(folder)
    assert len(expected) == 5, sorted(expected)
    kills = 0
    while True:
        shutil.rmtree(folder)
        folder.mkdir()
        if run_in_child(file, kills + 1) != -signal.SIGKILL:
            break
        kills += 1
        if file.exists():  # it must be complete, and its list of failures too
            assert files(folder).items() >= expected.items()
            continue
        assert run_in_child(file, 0) == 0, f"the job cannot be resumed after kill {kills}"
        # A lock may stay behind a finished part. It is free, because its owner is dead.
        found = {name: content for name, content in files(folder).items() if not name.endswith(".lock")}
        assert found == expected, f"after kill {kills}, the folder holds {sorted(found)}"
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
