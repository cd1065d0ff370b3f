"""Parts of long videos, and the table of the most likely classes."""

import csv

import pyarrow.parquet as pq
import pytest

from hdc_keras.classification.directory import ClassifierDirectory
from hdc_keras.classification.prediction import check_free, clip_seconds, predict, sliding_parts
from hdc_keras.config import DataConfig
from hdc_keras.data.records import StoredVideo, VideoRecord, read_records
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import ConfigError, DataError, RunError
from tests.classification.small_classifier import write_classifier
from tests.conftest import numbered_frames


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("classifier"))


def rows_of(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def ten_per_second(tmp_path):
    """A video of 24 frames, 10 a second."""
    write_video(tmp_path / "v.mp4", numbered_frames(24), rate=10)
    return str(tmp_path / "v.mp4")


@pytest.mark.parametrize(
    ("seconds", "segment", "bounds"),
    [
        (1.0, None, [(0, 1), (1, 2.4)]),  # the rest, 0.4 s, is shorter than half
        (0.9, None, [(0, 0.9), (0.9, 1.8), (1.8, 2.4)]),
        (10.0, None, [(0, 2.4)]),
        (0.5, (1.0, 2.1), [(1.0, 1.5), (1.5, 2.1)]),
    ],
)
def test_a_video_is_divided_into_parts_of_one_length(ten_per_second, seconds, segment, bounds):
    parts, failed = sliding_parts([VideoRecord(ten_per_second, "v.mp4", segment=segment)], seconds)

    assert [part.segment for part in parts] == [pytest.approx(pair) for pair in bounds] and not failed
    assert len({part.video_id for part in parts}) == len(parts)
    assert parts[0].video_id.startswith("v.mp4@")


def test_what_cannot_be_divided_is_named(tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    stored = VideoRecord("prepared.mp4", "stored", stored=StoredVideo("shard", 0, 1, 10, 10.0))

    parts, failed = sliding_parts([VideoRecord(str(tmp_path / "bad.mp4"), "bad.mp4"), stored], 1.0)

    assert not parts and [one["file"] for one in failed] == [str(tmp_path / "bad.mp4"), "prepared.mp4"]
    assert "prepared set" in failed[1]["cause"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_most_likely_classes_come_first(classifier, class_folder, tmp_path, suffix):
    directory, file = ClassifierDirectory(classifier), tmp_path / f"named{suffix}"

    done = predict(directory, directory.experiment(), read_records(class_folder), file, top=5)

    rows = rows_of(file) if suffix == ".csv" else pq.read_table(file).to_pylist()
    assert list(rows[0]) == ["video_id", "file", "class_1", "score_1", "class_2", "score_2", "class_3", "score_3"]
    assert len(rows) == done.rows == 8 and done.top == 3
    for row in rows:
        scores = [float(row[f"score_{rank}"]) for rank in (1, 2, 3)]
        assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=1e-4)
        assert {row[f"class_{rank}"] for rank in (1, 2, 3)} == {"a", "b", "c"}
    assert sum(done.first.values()) == 8
    assert not list(tmp_path.glob(".*unfinished*"))


def test_parts_have_their_times_and_damaged_videos_are_listed(classifier, ten_per_second, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    records = [VideoRecord(ten_per_second, "v.mp4"), VideoRecord(str(tmp_path / "bad.mp4"), "bad.mp4")]
    directory = ClassifierDirectory(classifier)

    done = predict(directory, directory.experiment(), records, tmp_path / "when.csv", top=1, sliding=0.8)

    rows = rows_of(tmp_path / "when.csv")
    assert [(row["start"], row["end"]) for row in rows] == [("0", "0.8"), ("0.8", "1.6"), ("1.6", "2.4")]
    assert list(rows[0]) == ["video_id", "file", "start", "end", "class_1", "score_1"]
    (failure,) = rows_of(tmp_path / "when.csv.failures.csv")
    assert done.failed == [failure] and failure["cause"]
    assert (failure["video_id"], failure["file"]) == ("bad.mp4", str(tmp_path / "bad.mp4"))


def test_too_many_videos_that_cannot_be_divided_end_the_job(tmp_path, ten_per_second):
    (tmp_path / "bad.mp4").write_text("no video")
    records = [VideoRecord(ten_per_second, "v.mp4"), VideoRecord(str(tmp_path / "bad.mp4"), "bad.mp4")]

    assert len(sliding_parts(records, 1.0, 0.5)[0]) == 2
    with pytest.raises(DataError, match="1 of 2 videos cannot be decoded"):
        sliding_parts(records, 1.0, 0.4)


def test_lengths_of_a_frame_and_a_clip_are_those_of_the_videos(tmp_path, ten_per_second):
    (tmp_path / "bad.mp4").write_text("no video")
    bad, good = VideoRecord(str(tmp_path / "bad.mp4"), "bad.mp4"), VideoRecord(ten_per_second, "v.mp4")

    assert clip_seconds([bad, good], DataConfig(frames=8, stride=3)) == pytest.approx((0.1, 2.2))
    assert clip_seconds([good], DataConfig(frames=8, stride=1, fps=5)) == pytest.approx((0.2, 1.6))
    assert clip_seconds([bad], DataConfig()) is None


def test_a_file_that_another_process_wrote_meanwhile_is_kept(classifier, class_folder, tmp_path):
    directory, file = ClassifierDirectory(classifier), tmp_path / "named.csv"

    def write_at_the_end(done, total):
        if done == total:
            file.write_text("of another process")

    with pytest.raises(RunError, match="was written by another process meanwhile"):
        predict(directory, directory.experiment(), read_records(class_folder), file, progress=write_at_the_end)
    assert file.read_text() == "of another process"
    left = {one.name for one in tmp_path.iterdir()}
    assert {name for name in left if not name.endswith(".lock")} == {"videos", "named.csv"}


def test_the_list_of_a_killed_process_does_not_stop_the_next_one(tmp_path):
    file = tmp_path / "named.csv"
    (tmp_path / "named.csv.failures.csv").write_text("of another command")
    with pytest.raises(RunError, match=r"failures\.csv exists"):
        check_free(file)

    (tmp_path / ".named.csv.0123456789ab.unfinished").mkdir()
    check_free(file)
    file.write_text("")
    with pytest.raises(RunError, match=r"named\.csv exists"):
        check_free(file)


def test_other_settings_than_those_of_reading_are_refused(classifier):
    directory = ClassifierDirectory(classifier)
    own = directory.experiment()

    directory.require_settings_of(own.model_copy(update={"data": own.data.model_copy(update={"frames": 5})}))
    with pytest.raises(ConfigError, match=r"views\.size: .* was made with another value"):
        directory.require_settings_of(own.model_copy(update={"views": own.views.model_copy(update={"size": 20})}))


def test_nothing_is_written_if_no_video_can_be_decoded(classifier, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    directory = ClassifierDirectory(classifier)
    experiment = directory.experiment()
    data = experiment.data.model_copy(update={"max_failed_share": 1.0})

    with pytest.raises(DataError, match=r"none of the videos can be decoded(.|\n)*bad\.mp4"):
        predict(
            directory,
            experiment.model_copy(update={"data": data}),
            [VideoRecord(str(tmp_path / "bad.mp4"), "bad.mp4")],
            tmp_path / "named.csv",
            sliding=1.0,
        )
    assert not (tmp_path / "named.csv").exists()
