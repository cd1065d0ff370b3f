import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import DataError, RunError
from hdc_keras.features.embedding_table import EmbeddingTable, check_free, parts_folder

RECORDS = [VideoRecord(f"/videos/{name}.mp4", name, {"label": "x"}, "train", "g") for name in "abcde"]
WIDTHS = {"P2": 2, "P2_spatial": 3}
MADE_FROM = {"weights_sha256": "one", "clips": 10}


def table(file, records=RECORDS, made_from=MADE_FROM, widths=WIDTHS):
    return EmbeddingTable(file, records, widths, made_from, videos_per_part=2)


def write(made, *parts, failed=()):
    for part in parts:
        good = [record for record in made.records_of(part) if record.video_id not in failed]
        arrays = {name: np.full((len(good), width), float(part)) for name, width in made.widths.items()}
        causes = {record.video_id: "bad" for record in made.records_of(part) if record not in good}
        made.write_part(part, good, arrays, causes)


def test_a_job_killed_at_any_file_operation_ends_with_the_same_bytes(tmp_path):
    worker = Path(__file__).with_name("kill_worker.py")
    done = subprocess.run([sys.executable, worker, tmp_path / "t"], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    # Opening, flushing and renaming three parts, the file and its list of failures, and removing the parts.
    assert int(done.stdout) > 30


def test_columns_are_named_as_in_a_manifest_and_missing_values_are_null(tmp_path):
    records = [
        VideoRecord("/a.mp4", "a", {"motion": "left", "scene": "sea"}, "test", "g1"),
        VideoRecord("/b.mp4", "b"),
    ]
    made = table(tmp_path / "t.parquet", records)
    write(made, 0)
    made.finish()

    found = pq.read_table(tmp_path / "t.parquet")
    assert found.column_names == ["video_id", "path", "label_motion", "label_scene", "split", "group", *WIDTHS]
    texts = found.select(["video_id", "label_motion", "split", "group"]).to_pylist()
    assert [list(row.values()) for row in texts] == [["a", "left", "test", "g1"], ["b", None, None, None]]
    vectors = found.schema.field("P2_spatial").type
    assert str(vectors).startswith("fixed_size_list") and (vectors.list_size, str(vectors.value_type)) == (3, "float")


def test_a_set_without_labels_has_an_empty_label_column(tmp_path):
    made = table(tmp_path / "t.parquet", [VideoRecord("/a.mp4", "a")])
    write(made, 0)
    made.finish()

    assert pq.read_table(tmp_path / "t.parquet")["label"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"made_from": {**MADE_FROM, "weights_sha256": "two"}}, "weights_sha256: one before, two now"),
        ({"made_from": {**MADE_FROM, "clips": 5}}, "clips: 10 before, 5 now"),
        ({"records": RECORDS[:4]}, "videos: 5 before, 4 now"),
        ({"records": [*RECORDS[:4], VideoRecord("/f.mp4", "f")]}, "videos_sha256"),
    ],
)
def test_parts_of_other_weights_settings_or_videos_are_never_mixed(tmp_path, change, message):
    write(table(tmp_path / "t.parquet"), 0)

    with pytest.raises(RunError, match="parts are never mixed") as refused:
        table(tmp_path / "t.parquet", **change)

    assert message in str(refused.value) and str(parts_folder(tmp_path / "t.parquet")) in str(refused.value)
    assert list(table(tmp_path / "t.parquet").failed) == [0]  # the parts are unchanged


def test_a_damaged_part_is_written_again(tmp_path):
    made = table(tmp_path / "t.parquet")
    write(made, 0, 1)
    part = made.folder / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-7])

    assert list(table(tmp_path / "t.parquet").failed) == [0]


def test_an_existing_file_is_not_changed(tmp_path):
    file = tmp_path / "t.parquet"
    file.write_text("mine")

    with pytest.raises(RunError, match="already exists and was not changed"):
        check_free(file)
    parts_folder(file).mkdir()  # as if a job had been killed just before its end, and another program had made the file
    with pytest.raises(RunError, match="already exists and was not changed"):
        table(file)
    assert file.read_text() == "mine"


def test_every_video_is_a_row_or_a_failure(tmp_path):
    made = table(tmp_path / "t.parquet")

    with pytest.raises(DataError, match="2 videos were requested, but 1 were embedded and 0 failed"):
        made.write_part(0, RECORDS[:1], {name: np.zeros((1, width)) for name, width in WIDTHS.items()}, {})
    assert not made.failed


def test_if_no_video_can_be_decoded_there_is_no_file_and_the_next_try_starts_over(tmp_path):
    made = table(tmp_path / "t.parquet")
    write(made, 0, 1, 2, failed="abcde")

    with pytest.raises(DataError, match=r"none of 5 videos can be decoded. The first:\n  /videos/a.mp4: bad"):
        made.finish()
    assert not list(tmp_path.iterdir())


def test_a_part_may_hold_only_failures(tmp_path):
    made = table(tmp_path / "t.parquet")
    write(made, 0, 1, 2, failed="ab")

    rows, failures = made.finish()

    assert rows == 3 and [failure["video_id"] for failure in failures] == ["a", "b"]
    assert (tmp_path / "t.failures.csv").read_text().splitlines()[:2] == ["video_id,file,cause", "a,/videos/a.mp4,bad"]
    assert pq.read_table(tmp_path / "t.parquet")["video_id"].to_pylist() == ["c", "d", "e"]


def test_the_failures_of_an_earlier_file_are_removed(tmp_path):
    (tmp_path / "t.failures.csv").write_text("video_id,file,cause\nold,old,old\n")
    made = table(tmp_path / "t.parquet")
    write(made, 0, 1, 2)

    assert made.finish() == (5, []) and not (tmp_path / "t.failures.csv").exists()


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


def test_a_full_disk_is_an_error_that_keeps_the_parts(tmp_path, monkeypatch):
    made = table(tmp_path / "t.parquet")
    write(made, 0)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RunError, match=r"No space left on device\). Finished parts are kept"):
            write(made, 1)
    write(made, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            made.finish()

    assert [path.name for path in tmp_path.iterdir()] == [made.folder.name]
    assert sorted(path.name for path in made.folder.iterdir()) == [f"part-{n:06d}.parquet" for n in range(3)]
    assert table(tmp_path / "t.parquet").finish() == (5, [])
