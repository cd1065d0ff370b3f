"""Run by test_embedding_table.py in a process without threads, which may fork: a table that is killed at every point.

Usage: python kill_worker.py FOLDER. For each file that is opened, renamed or removed while a table is made, a child is
killed (SIGKILL) just before it, and the job begun again. Prints how many kills there were.
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


def make(file: Path) -> None:
    table = EmbeddingTable(file, RECORDS, {"P2": 4}, {"weights_sha256": "a"}, 3)
    for part in range(0 if table.is_complete else table.parts):
        if part not in table.failed:
            good = [record for record in table.records_of(part) if record.video_id not in FAILED]
            vectors = np.array([[int(record.video_id[0])] * 4 for record in good], np.float32)
            failed = {r.video_id: FAILED[r.video_id] for r in table.records_of(part) if r not in good}
            table.write_part(part, good, {"P2": vectors}, failed)
    rows, failures = table.finish()
    assert (rows, [failure["video_id"] for failure in failures]) == (6, ["1.mp4", "5.mp4"])


def in_a_child(file: Path, killed_at: int) -> int:
    """The signal that ended it; 0 where it was done before."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in OPERATIONS or (event == "open" and str(file.parent) in str(arguments[0])):
            seen += 1
            if seen == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    status = 1
    try:
        make(file)
        status = 0
    finally:
        os._exit(status)


def main(folder: Path) -> None:
    file = folder / "table.parquet"
    folder.mkdir()
    assert in_a_child(file, 0) == 0
    expected = {name: (folder / name).read_bytes() for name in ("table.parquet", "table.failures.csv")}
    kills = 0
    while True:
        shutil.rmtree(folder)
        folder.mkdir()
        if in_a_child(file, kills + 1) != -signal.SIGKILL:
            break
        kills += 1
        if file.exists():  # then it is whole, and so is its list of failures
            assert all((folder / name).read_bytes() == content for name, content in expected.items())
        assert in_a_child(file, 0) == 0, f"not gone on with after kill {kills}"
        left = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert left == expected, f"after kill {kills} there are {sorted(left)}"
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
