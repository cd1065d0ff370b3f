import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError, RunError, VideoDecodeError
from hdc_keras.features.embedding_table import EmbeddingTable, check_free, failures_file
from hdc_keras.features.video_features import VideoFeatures

RECORDS = [VideoRecord(f"/videos/{name}.mp4", name, {"label": "x"}, "train", "g") for name in "abcde"]
WIDTHS = {"P2": 2, "P2_spatial": 3}
MADE_FROM = {"weights_sha256": "one", "clips": 10}


def table(file, records=RECORDS, made_from=MADE_FROM, widths=WIDTHS):
    return EmbeddingTable(file, records, widths, made_from)


def reading(failed=""):
    """A function that returns the features of videos: row i of a set is filled with i."""

    def read(asked):
        good = [record for record in asked if record.video_id not in failed]
        arrays = {name: np.full((len(good), width), 1.0) for name, width in WIDTHS.items()}
        errors = {r.video_id: VideoDecodeError(r.path, "bad") for r in asked if r not in good}
        return VideoFeatures(good, arrays if good else {}, len(asked), errors)

    return read


def test_a_job_killed_at_any_file_operation_ends_with_the_same_bytes(tmp_path):
    worker = Path(__file__).with_name("kill_worker.py")
    done = subprocess.run([sys.executable, worker, tmp_path / "t"], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    # Opening, flushing, renaming and locking three parts, the file and its list of failures.
    assert int(done.stdout) > 30


def test_columns_are_named_as_in_a_manifest_and_missing_values_are_null(tmp_path):
    records = [
        VideoRecord("/a.mp4", "a", {"motion": "left", "scene": "sea"}, "test", "g1"),
        VideoRecord("/b.mp4", "b"),
    ]
    made = table(tmp_path / "t.parquet", records)
    made.write(reading())

    found = pq.read_table(tmp_path / "t.parquet")
    assert found.column_names == ["video_id", "path", "label_motion", "label_scene", "split", "group", *WIDTHS]
    texts = found.select(["video_id", "label_motion", "split", "group"]).to_pylist()
    assert [list(row.values()) for row in texts] == [["a", "left", "test", "g1"], ["b", None, None, None]]
    vectors = found.schema.field("P2_spatial").type
    assert str(vectors).startswith("fixed_size_list") and (vectors.list_size, str(vectors.value_type)) == (3, "float")


def test_a_set_without_labels_has_an_empty_label_column(tmp_path):
    made = table(tmp_path / "t.parquet", [VideoRecord("/a.mp4", "a")])
    made.write(reading())

    assert pq.read_table(tmp_path / "t.parquet")["label"].to_pylist() == [None]


def test_an_existing_file_is_not_changed(tmp_path):
    file = tmp_path / "t.parquet"
    made = table(file)
    file.write_text("mine")

    for write in (lambda: check_free(file), lambda: table(file), lambda: made.write(reading())):
        with pytest.raises(RunError, match="already exists and was not changed"):
            write()
    assert file.read_text() == "mine"


def test_two_processes_with_the_same_job_write_one_file(tmp_path):
    first, second = table(tmp_path / "t.parquet"), table(tmp_path / "t.parquet")
    other = table(tmp_path / "t.parquet", made_from={**MADE_FROM, "weights_sha256": "two"})

    assert first.write(reading("a")) == second.write(None)  # the second one reads no features
    check_free(first.file)
    assert table(first.file).write(None) == first.write(None)
    with pytest.raises(RunError, match="already exists"):
        table(first.file, made_from={**MADE_FROM, "weights_sha256": "two"})
    with pytest.raises(RunError, match="already exists"):
        other.write(reading())


def test_every_video_is_a_row_or_a_failure(tmp_path):
    made = table(tmp_path / "t.parquet")

    with pytest.raises(DataError, match="5 videos were requested, but 4 were embedded and 0 failed"):
        made.write(lambda asked: reading()(asked[:4]))
    assert not list(tmp_path.iterdir())


def test_if_no_video_can_be_decoded_there_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r"none of 5 videos can be decoded. The first:\n  /videos/a.mp4: bad"):
        table(tmp_path / "t.parquet").write(reading("abcde"))
    assert not list(tmp_path.iterdir())


def test_failures_are_listed_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("hdc_keras.features.embedding_table._ROWS_PER_GROUP", 2)  # the first one has no rows

    rows, failures = table(tmp_path / "t.parquet").write(reading("ab"))

    assert rows == 3 and [failure["video_id"] for failure in failures] == ["a", "b"]
    assert (tmp_path / "t.failures.csv").read_text().splitlines()[:2] == ["video_id,file,cause", "a,/videos/a.mp4,bad"]
    assert pq.read_table(tmp_path / "t.parquet")["video_id"].to_pylist() == ["c", "d", "e"]


def test_the_failures_of_an_earlier_file_are_removed(tmp_path):
    (tmp_path / "t.failures.csv").write_text("video_id,file,cause\nold,old,old\n")

    assert table(tmp_path / "t.parquet").write(reading()) == (5, [])
    assert not failures_file(tmp_path / "t.parquet").exists()


def test_repeated_ids_are_refused(tmp_path):
    with pytest.raises(DataError, match="several videos have the id `a`"):
        table(tmp_path / "t.parquet", [*RECORDS, VideoRecord("/other.mp4", "a")])


def test_a_file_name_that_is_not_utf8_is_refused_before_any_work(tmp_path):
    with pytest.raises(DataError, match=r"'/caf\\udce9.mp4': the file name is not valid UTF-8"):
        table(tmp_path / "t.parquet", [VideoRecord("/caf\udce9.mp4", "caf")])


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(RunError, match="cannot be written"):
        table(tmp_path / "file" / "t.parquet")


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path, monkeypatch):
    made = table(tmp_path / "t.parquet")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hdc_keras.files.os.fsync", full)
        with pytest.raises(RunError, match=r"No space left on device\). (Finished parts are kept|Make the folder)"):
            made.write(reading())

    assert not list(tmp_path.iterdir())
    assert made.write(reading()) == (5, [])
