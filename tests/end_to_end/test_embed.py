"""`hdc-keras embed`."""

import csv
import shutil

import pyarrow.parquet as pq
import pytest

from hdc_keras.data.records import read_manifest
from hdc_keras.data.synthetic import write_video
from hdc_keras.features.vector_table import read_vector_table
from tests.conftest import call_command, numbered_frames, run_command, write_class_folder

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="session")
def run(untrained_run):
    return untrained_run


@pytest.fixture(scope="session")
def embedded(once, run):
    """Eight videos and a file that is not a video, embedded without interruption: folder, arguments, printed text."""

    def arguments(folder):
        share = ("--set", "data.max_failed_share=0.2")
        return ["embed", "--run", run, "--data", folder / "videos", "--features", "features", *share]

    def make(folder):
        write_class_folder(folder / "videos")
        (folder / "videos" / "across" / "notes.mp4").write_text("not a video")
        done = run_command(folder, *arguments(folder), "--out", "uninterrupted.parquet")
        assert done.code == 0, done.out
        (folder / "printed.txt").write_text(done.out)

    folder = once("embedded", make)
    return folder, arguments(folder), (folder / "printed.txt").read_text()


def test_every_video_is_a_row_or_a_listed_failure(embedded):
    folder, _, printed = embedded

    assert "Embedded 8 of 9 videos, 1 failed: uninterrupted.parquet, from step-000000001.keras" in printed
    assert "notes.mp4: Invalid data found" in printed and "videos/s" in printed and "P5_temporal (128)" in printed
    with (folder / "uninterrupted.failures.csv").open(newline="") as file:
        assert [row["video_id"] for row in csv.DictReader(file)] == ["across/notes.mp4"]
    table = pq.read_table(folder / "uninterrupted.parquet")
    assert table["video_id"].to_pylist() == [f"{label}/{n}.mp4" for label in ("across", "around") for n in range(4)]
    assert table["label"].to_pylist() == 4 * ["across"] + 4 * ["around"]
    expected = {"videos", "features", "printed.txt", "uninterrupted.parquet", "uninterrupted.failures.csv"}
    assert {path.name for path in folder.iterdir()} == expected


@pytest.mark.slow
def test_a_part_writes_no_file_and_says_what_to_do_next(embedded, hdc_keras_command, tmp_path):
    folder, arguments, _ = embedded

    part = hdc_keras_command(*arguments, "--out", "parts.parquet", "--part", "2/2")
    assert part.code == 0 and "Part 2/2 is extracted. Once all parts are, run the command without --part" in part.out
    assert not (tmp_path / "parts.parquet").exists()
    whole = hdc_keras_command(*arguments, "--out", "parts.parquet")

    assert whole.code == 0 and "Embedded 8 of 9 videos, 1 failed" in whole.out, whole.out
    for suffix in (".parquet", ".failures.csv"):
        assert (tmp_path / f"parts{suffix}").read_bytes() == (folder / f"uninterrupted{suffix}").read_bytes()


def test_parts_of_a_file_are_rows_with_their_start_and_end(run, tmp_path):
    write_video(tmp_path / "long.mp4", numbered_frames(30), rate=10)
    lines = ("path,start,end", "long.mp4,0,1", "long.mp4,1,2.5", "long.mp4,2.5,9")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    arguments = ("--run", run, "--data", "manifest.csv", "--out", "v.parquet", "--features", "features")
    done = call_command(tmp_path, "embed", *arguments)

    assert done.code == 0, done.out
    table = pq.read_table(tmp_path / "v.parquet")
    assert table["start"].to_pylist() == [0.0, 1.0, 2.5] and table["end"].to_pylist() == [1.0, 2.5, 9.0]
    assert len({tuple(vector) for vector in table["P5"].to_pylist()}) == 3
    assert [record.segment for record in read_vector_table(tmp_path / "v.parquet").records] == [
        (0.0, 1.0), (1.0, 2.5), (2.5, 9.0),
    ]  # fmt: skip
    found = call_command(tmp_path, "search", "v.parquet", "--duplicates", 0.0, "--out", "g.csv")
    assert found.code == 0, found.out
    with (tmp_path / "g.csv").open(newline="") as stream:
        assert [(row["start"], row["end"]) for row in csv.DictReader(stream)][1] == ("1.0", "2.5")
    assert len(read_manifest(tmp_path / "g.csv")) == 3


def test_wrong_usage_is_explained(refused, run, embedded, tmp_path):
    there = embedded[0] / "uninterrupted.failures.csv"
    there = shutil.copy(there, tmp_path / "there.parquet")  # not a table of embeddings
    for arguments, code, expected in (
        (("--out", there), 1, "there.parquet already exists and was not changed"),
        (("--out", "out.csv"), 2, "expected a local file ending in .parquet"),
        (("--out", "out.parquet", "--checkpoint", "oldest"), 2, "expected newest or best"),
        (("--out", "out.parquet", "--part", "3/2"), 2, "--part: expected I/N with I from 1 to N"),
    ):
        refused("embed", "--run", run, *arguments, code=code, says=[expected])
    refused("embed", "--run", "nowhere", "--out", "out.parquet", code=1, says=["nowhere holds no run"])
