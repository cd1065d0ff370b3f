"""Videos that are parts of files: `start` and `end` in a manifest."""

import shutil

import numpy as np
import pytest

from hdc_keras.config import DataConfig
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.decoding import frames_of_segment, stream_frames
from hdc_keras.data.inspection import inspect_video
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.preparing import prepare
from hdc_keras.data.records import VideoRecord, read_manifest, with_splits
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import DataError, VideoDecodeError
from hdc_keras.features.store import identity
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.videos import read_videos_of, seen_in_pretraining
from tests.conftest import frame_numbers, numbered_frames


@pytest.fixture
def folder(tmp_path):
    """`long.mp4`, 30 frames at 10 per second, and `manifest.csv` with three parts of it."""
    write_video(tmp_path / "long.mp4", numbered_frames(30), rate=10)
    return manifest(tmp_path, "long.mp4,0,1,a", "long.mp4,1,2.5,b", "long.mp4,2.5,9,a")


def manifest(folder, *lines):
    (folder / "manifest.csv").write_text("\n".join(["path,start,end,label", *lines]))
    return folder


def test_parts_of_a_file_are_videos_of_their_own(folder):
    records = read_manifest(folder / "manifest.csv")
    store = FrameStore((48, 64), 0.0)

    assert [record.video_id for record in records] == ["long.mp4#0-1", "long.mp4#1-2.5", "long.mp4#2.5-9"]
    assert [store.count(record) for record in records] == [10, 15, 5]
    assert frame_numbers(store.clips(records[1], np.array([0, 14, 3]))).tolist() == [10, 24, 13]
    assert frame_numbers(FrameStore((48, 64), 1.0).clips(records[2], np.array([[4], [0]]))).tolist() == [[29], [25]]
    assert [inspect_video(record).frames for record in records] == [10, 15, 5]
    assert len({tuple(identity(record)) for record in records}) == 3


def test_they_share_a_group_so_that_no_split_divides_a_file(folder):
    shutil.copy(folder / "long.mp4", folder / "other.mp4")
    manifest(folder, "long.mp4,0,1,a", "long.mp4,1,2,b", "other.mp4,0,1,a", "other.mp4,1,2,b", "other.mp4,,,a")

    records = with_splits(read_manifest(folder / "manifest.csv"), 0.4, seed=0)

    long, other = str(folder / "long.mp4"), str(folder / "other.mp4")
    assert [record.group for record in records] == [*2 * [long], *3 * [other]]
    assert len({record.split for record in records[:2]}) == len({record.split for record in records[2:]}) == 1


def test_parts_by_two_paths_of_a_file_share_its_group_and_a_given_group_counts(folder):
    (folder / "link.mp4").symlink_to("long.mp4")
    (folder / "manifest.csv").write_text("path,start,end,group\nlong.mp4,0,1,\nlink.mp4,1,2,\nlong.mp4,2,3,mine\n")

    assert [record.group for record in read_manifest(folder / "manifest.csv")] == 3 * ["mine"]


def test_a_split_that_divides_a_file_is_refused(folder):
    (folder / "manifest.csv").write_text("path,start,end,split\nlong.mp4,0,1,train\nlong.mp4,,,test\n")

    with pytest.raises(DataError, match=r"group `.*long\.mp4` is in several splits"):
        read_manifest(folder / "manifest.csv")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("long.mp4,1,1,a", "expected `start` < `end` in seconds, or neither. Received: 1 and 1"),
        ("long.mp4,-1,1,a", "Received: -1 and 1"),
        ("long.mp4,1,,a", "Received: 1 and"),
        ("long.mp4,one,2,a", "Received: one and 2"),
        ("long.mp4,1,inf,a", "Received: 1 and inf"),
        ("./long.mp4,0,1,a", "`long.mp4#0-1` is already listed on line 2"),
        ("long.mp4,0.0,1,a", "`long.mp4#0-1` is already listed on line 2"),
        ("LINK,0,1,a", "the file of `link.mp4#0-1` is already listed on line 2"),
    ],
)
def test_impossible_parts_are_reported_with_their_line(folder, line, said):
    (folder / "link.mp4").symlink_to("long.mp4")
    manifest(folder, "long.mp4,0,1,a", line.replace("LINK", "link.mp4"))

    with pytest.raises(DataError) as raised:
        read_manifest(folder / "manifest.csv")

    assert "line 3: " in str(raised.value) and said in str(raised.value)


def test_a_part_behind_the_end_is_a_failure_that_names_the_end(folder):
    with pytest.raises(VideoDecodeError, match=r"long\.mp4: has no frame from 3 to 4 s; it ends at 3\.00 s"):
        frames_of_segment(str(folder / "long.mp4"), (3.0, 4.0))


@pytest.mark.parametrize(
    ("rate", "segment", "expected"),
    [
        (None, (1.0, 1.5), [10, 11, 12, 13, 14]),
        (5.0, (1.0, 2.0), [10, 12, 14, 16, 18]),
        (20.0, (2.8, 9.0), [28, 28, 29, 29]),
        (5.0, None, list(range(0, 30, 2))),
    ],
)
def test_parts_are_resampled(folder, rate, segment, expected):
    frames = list(stream_frames(str(folder / "long.mp4"), (48, 64), rate, segment))

    assert frame_numbers(np.stack(frames)).tolist() == expected


def test_prepared_parts_have_the_frames_of_the_parts(folder, tmp_path):
    records = read_manifest(folder / "manifest.csv")

    prepare(records, tmp_path / "prepared", size=(48, 64), processes=1)

    stored = read_dataset(DataConfig(path=str(tmp_path / "prepared"))).records
    assert [(record.video_id, record.segment) for record in stored] == [
        (record.video_id, record.segment) for record in records
    ]
    store = FrameStore((48, 64), 0.0)
    assert [store.count(record) for record in stored] == [10, 15, 5]
    assert frame_numbers(store.clips(stored[1], np.array([0, 14]))).tolist() == [10, 24]


def test_a_run_remembers_parts_and_knows_which_ones_it_has_seen(folder, tmp_path):
    from hdc_keras import Experiment

    first, second, third = read_manifest(folder / "manifest.csv")
    run = RunDirectory(tmp_path / "run")
    run.create(Experiment(), with_splits([first, second], 0.0, 0))

    assert [row.record.segment for row in read_videos_of(run.path)] == [(0.0, 1.0), (1.0, 2.5)]
    other = VideoRecord(first.path, "x", split="test", segment=(2.0, 3.0))
    whole = VideoRecord(first.path, "y", split="test")
    apart = VideoRecord(first.path, third.video_id, split="test", segment=third.segment)
    assert seen_in_pretraining(run.path, [other, whole, apart]) == {"test_videos": 2, "of": 3}
