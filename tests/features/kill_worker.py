"""Kills the writing of an `EmbeddingTable` at every possible point, and checks that it can be resumed.

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

from hdc_keras.data.records import VideoRecord
from hdc_keras.features.embedding_table import EmbeddingTable

RECORDS = [VideoRecord(f"/videos/{number}.mp4", f"{number}.mp4", {"label": "ab"[number % 2]}) for number in range(8)]
FAILED = {"1.mp4": "not a video", "5.mp4": "no frames"}
OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def write_table(file: Path) -> None:
    table = EmbeddingTable(file, RECORDS, {"P2": 4}, {"weights_sha256": "a"}, 3)
    for part in range(0 if table.is_complete else table.parts):
        if part not in table.failed:
            good = [record for record in table.records_of(part) if record.video_id not in FAILED]
            vectors = np.array([[int(record.video_id[0])] * 4 for record in good], np.float32)
            failed = {r.video_id: FAILED[r.video_id] for r in table.records_of(part) if r not in good}
            table.write_part(part, good, {"P2": vectors}, failed)
    rows, failures = table.finish()
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


def main(folder: Path) -> None:
    file = folder / "table.parquet"
    folder.mkdir()
    assert run_in_child(file, 0) == 0
    expected = {name: (folder / name).read_bytes() for name in ("table.parquet", "table.failures.csv")}
    kills = 0
    while True:
        shutil.rmtree(folder)
        folder.mkdir()
        if run_in_child(file, kills + 1) != -signal.SIGKILL:
            break
        kills += 1
        if file.exists():  # it must be complete, and its list of failures too
            assert all((folder / name).read_bytes() == content for name, content in expected.items())
        assert run_in_child(file, 0) == 0, f"the job cannot be resumed after kill {kills}"
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert found == expected, f"after kill {kills}, the folder holds {sorted(found)}"
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
