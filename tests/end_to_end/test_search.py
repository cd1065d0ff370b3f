"""`hdc-keras search`: from embedded videos to what looks alike, what moves alike and what is almost the same."""

import csv
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import call_command, run_command, write_class_folder

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="session")
def embedded(once, untrained_run):
    """`videos.parquet` of eight videos, of which one has a copy."""

    def make(folder):
        write_class_folder(folder / "videos")
        shutil.copy(folder / "videos" / "across" / "0.mp4", folder / "videos" / "across" / "copy.mp4")
        arguments = ("--run", untrained_run, "--data", "videos", "--out", "videos.parquet", "--features", "features")
        done = run_command(folder, "embed", *arguments)
        assert done.code == 0, done.out

    return once("searched", make)


def rows_of(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_video_of_the_table_is_searched_without_a_backend(embedded):
    code = (
        "import sys; from hdc_keras_cli.main import main\n"
        "try: main()\n"
        "finally: print({'keras', 'av'} & set(sys.modules))"
    )
    arguments = ("search", "videos.parquet", "--like", "across/0.mp4")

    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=embedded, capture_output=True, text=True)

    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr


def test_the_nearest_videos_are_printed_written_and_shown(embedded, tmp_path):
    files = ("--out", tmp_path / "found.csv", "--html", tmp_path / "found.html")
    arguments = ("videos.parquet", "--like", "across/0.mp4", "--nearest", 3)

    done = run_command(embedded, "search", *arguments, *files)

    assert done.code == 0, done.out
    assert "Alike" not in done.out and "Nearest to across/0.mp4 by motion" in done.out
    rows = rows_of(tmp_path / "found.csv")
    assert [row["by"] for row in rows] == 3 * ["spatial"] + 3 * ["temporal"] + 3 * ["both"]
    for row in rows[::3]:
        assert (row["video_id"], row["rank"], row["cosine"], row["label"]) == (
            "across/copy.mp4",
            "1",
            "1.0000",
            "across",
        )
    assert "across/0.mp4" not in {row["video_id"] for row in rows}
    page = (tmp_path / "found.html").read_text()
    assert page.count('class="thumb t') == 3 * 4 and "Alike in appearance and motion" in page
    assert not re.search(r"https?://", page.split("<body>")[1])


def test_a_video_file_is_embedded_as_the_table_was(embedded, tmp_path):
    shutil.copy(embedded / "videos" / "around" / "2.mp4", tmp_path / "new video.mp4")
    out = ("--out", tmp_path / "found.csv")

    done = run_command(embedded, "search", "videos.parquet", "--like", tmp_path / "new video.mp4", "--by", "both", *out)

    assert done.code == 0, done.out
    rows = rows_of(tmp_path / "found.csv")
    assert len(rows) == 9 and rows[0]["video_id"] == "around/2.mp4" and float(rows[0]["cosine"]) > 0.9999


def test_an_index_finds_the_same(embedded, tmp_path):
    for name in ("videos.parquet",):
        shutil.copy(embedded / name, tmp_path / name)
    arguments = ("search", "videos.parquet", "--like", "around/1.mp4", "--by", "temporal", "--nearest", 2)

    exact = call_command(tmp_path, *arguments, "--out", "exact.csv")
    by_index = call_command(tmp_path, *arguments, "--approximate", "--out", "index.csv")

    assert exact.code == by_index.code == 0, exact.out + by_index.out
    ids = [[row["video_id"] for row in rows_of(tmp_path / name)] for name in ("exact.csv", "index.csv")]
    assert ids[0] == ids[1] and len(ids[0]) == 2
    assert len(list(tmp_path.glob("videos.temporal.*.usearch"))) == 1


def test_existing_manifests_are_kept(embedded, tmp_path):
    (tmp_path / "mine.csv").write_text("path\n")
    (tmp_path / "page.html").mkdir()

    for option, name, said in (("--out", "mine.csv", "exists and is not overwritten"), ("--html", "page.html", "is a")):
        done = call_command(embedded, "search", "videos.parquet", "--duplicates", 0.9, option, tmp_path / name)
        assert done.code == 1 and said in " ".join(done.out.split())
    assert (tmp_path / "mine.csv").read_text() == "path\n"


def test_copies_are_grouped_for_the_next_pretraining(embedded, tmp_path):
    files = ("--out", tmp_path / "grouped.csv", "--html", tmp_path / "same.html")

    done = call_command(embedded, "search", "videos.parquet", "--duplicates", 0.99999, "--by", "both", *files)

    assert done.code == 0, done.out
    assert "2 of 9 videos are in 1 group of" in done.out and "2: across/0.mp4, across/copy.mp4" in done.out
    groups = {row["video_id"]: row["group"] for row in rows_of(tmp_path / "grouped.csv")}
    assert groups["across/0.mp4"] == groups["across/copy.mp4"] == "across/0.mp4" and len(set(groups.values())) == 8
    assert (tmp_path / "same.html").read_text().count('class="thumb t') == 2
    read = call_command(tmp_path, "doctor", "--data", "grouped.csv")
    assert "9" in read.out and "8 groups" in read.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "either --like VIDEO or --duplicates COSINE"),
        (["--like", "across/0.mp4", "--duplicates", 0.9], 2, "either --like VIDEO or --duplicates COSINE"),
        (["--like", "acros/0.mp4"], 1, "no video of the table has this id, and there is no such file. Did you mean"),
        (["--like", "across/0.mp4", "--by", "motion"], 2, "can be searched by spatial, temporal, both"),
        (["--duplicates", 0.9, "--by", "both", "--by", "spatial"], 2, "--duplicates takes one --by"),
        (["--duplicates", 0.9, "--approximate"], 2, "leave out --approximate and --run"),
        (["--duplicates", 1.5], 2, "less than or equal to 1"),
        (["--like", "across/0.mp4", "--html", "found.txt"], 2, "expected a file that ends in .html"),
        (["--like", "across/0.mp4", "--out", "found.txt"], 2, "expected a file that ends in .csv"),
        (["--like", "videos.parquet", "--run", "nowhere"], 1, "nowhere holds no run"),
    ],
)
def test_what_cannot_be_searched_is_refused(embedded, arguments, code, said):
    before = sorted(embedded.iterdir())

    done = call_command(embedded, "search", "videos.parquet", *arguments)

    assert done.code == code and said in " ".join(done.out.split()), done.out
    assert sorted(embedded.iterdir()) == before


def test_a_file_without_videos_or_with_other_weights_is_refused(embedded, untrained_run, smoke_run, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")

    broken = run_command(embedded, "search", "videos.parquet", "--like", tmp_path / "notes.mp4")
    other = run_command(embedded, "search", "videos.parquet", "--like", "videos/across/1.mp4", "--run", smoke_run[0])

    assert broken.code == 1 and "notes.mp4" in broken.out and "Traceback" not in broken.out
    assert other.code == 1 and "no longer has the checkpoint that the table was made with" in " ".join(
        other.out.split()
    )
