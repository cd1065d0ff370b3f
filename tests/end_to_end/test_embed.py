"""`hdc-keras embed`."""

import csv
import shutil

import pyarrow.parquet as pq
import pytest

from tests.conftest import run_command, write_class_folder

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
