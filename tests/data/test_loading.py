import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowBatches, WindowLoader, clip_batches
from hdc_keras.data.pipeline import windows_dataset
from hdc_keras.data.preparing import prepare
from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.data.sampling import WindowSpec, evenly_spaced_clips, sample_windows, video_keys
from hdc_keras.data.shards import read_prepared
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import DataError
from tests.conftest import frame_numbers, numbered_frames

SPEC = WindowSpec(frames=4, stride=2, min_gap=3)


@pytest.fixture
def videos(tmp_path):
    """Ten numbered videos of different lengths."""
    for number in range(10):
        write_video(tmp_path / f"{number}.mp4", numbered_frames(12 + 2 * number, (16, 32)))
    return read_records(tmp_path)


@pytest.fixture
def prepared(videos, tmp_path):
    """The same videos, prepared: two to a shard."""
    prepare(videos, tmp_path / "prepared", size=(16, 32), videos_per_shard=2, processes=1)
    return read_prepared(tmp_path / "prepared")[0]


@pytest.fixture(params=["tf.data", "threads"])
def batches(request):
    """The first batches of a set, through tf.data and through what serves the other backends."""

    def read(records, count, *, budget=0.0, failures=None, batch_size=4, seed=0, **options):
        store, failures = FrameStore((16, 32), budget), failures or DecodeFailures(len(records), 0.5)
        loader = WindowLoader(records, SPEC, store, failures, batch_size, seed)
        if request.param == "tf.data":
            return [batch.numpy() for batch in windows_dataset(loader, **options).take(count)]
        dataset = WindowBatches(loader, **options)
        return [dataset[step] for step in range(count)]

    return read


def test_windows_hold_the_frames_that_sampling_names(batches, videos):
    first = batches(videos, 1)[0]

    assert first.shape == (4, 2, 4, 16, 32, 3) and first.dtype == np.uint8
    keys, counts = video_keys(video.video_id for video in videos), 12 + 2 * np.arange(len(videos))
    expected = {tuple(windows.ravel()) for windows in sample_windows(0, 0, keys, counts, SPEC)}
    assert {tuple(numbers.ravel()) for numbers in frame_numbers(first)} <= expected


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_the_same_seed_gives_the_same_batches_whatever_the_parallelism_and_memory(batches, videos, workers, budget):
    for batch, again in zip(batches(videos, 5), batches(videos, 5, workers=workers, budget=budget), strict=True):
        np.testing.assert_array_equal(batch, again)


@pytest.mark.parametrize("workers", [1, 8])
def test_shards_give_the_frames_that_files_give_also_after_a_restart(batches, videos, prepared, workers):
    from_files = batches(videos, 6)
    from_shards = batches(prepared, 6, workers=workers)
    continued = batches(prepared, 3, start_step=3, workers=workers)

    for batch, stored in zip(from_files, from_shards, strict=True):
        np.testing.assert_array_equal(frame_numbers(batch), frame_numbers(stored))
        assert np.abs(batch.astype(int) - stored).max() <= 4  # JPEG loses a little
    for stored, again in zip(from_shards[3:], continued, strict=True):
        np.testing.assert_array_equal(stored, again)


def test_stored_frames_of_another_size_are_resized(videos, prepared):
    failures = DecodeFailures(len(prepared), 0.1)
    loader = WindowLoader(prepared, SPEC, FrameStore((8, 24), 0.0), failures, 4, seed=0)

    in_graph = next(iter(windows_dataset(loader))).numpy()

    assert in_graph.shape == (4, 2, 4, 8, 24, 3)
    np.testing.assert_array_equal(frame_numbers(in_graph), frame_numbers(WindowBatches(loader)[0]))


def test_reading_continues_where_it_stopped_even_inside_an_epoch(batches, videos):
    for batch, again in zip(batches(videos, 6)[3:], batches(videos, 3, start_step=3), strict=True):
        np.testing.assert_array_equal(batch, again)


def test_epochs_differ_and_no_video_is_twice_in_a_batch(batches, videos):
    records = [replace(record, path=videos[i].path) for i, record in enumerate(videos)]
    for batch in batches(records, 8):
        lengths = {tuple(numbers.ravel()) for numbers in frame_numbers(batch)}
        assert len(lengths) == 4
    assert not np.array_equal(*batches(videos, 3)[::2])


def test_a_bad_video_is_listed_and_another_takes_its_place(batches, videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    records = [*videos, VideoRecord(str(tmp_path / "bad.mp4"), "bad.mp4")]
    failures = DecodeFailures(len(records), 0.5)

    read = batches(records, 12, failures=failures)

    assert len(read) == 12 and all(batch.any(axis=(1, 2, 3, 4, 5)).all() for batch in read)
    assert list(failures.reasons) == [str(tmp_path / "bad.mp4")]


@pytest.mark.parametrize("where", ["files", "shards"])
@pytest.mark.parametrize("feed", ["tf.data", "threads"])
def test_a_label_goes_with_its_single_window_even_where_another_video_takes_a_bad_ones_place(tmp_path, where, feed):
    for number in range(7):
        frames = np.full((12, 16, 32, 3), 30 * number, np.uint8)
        write_video(tmp_path / f"{number}.mp4", frames)
    records = read_records(tmp_path)
    if where == "shards":
        prepare(records, tmp_path / "prepared", size=(16, 32), videos_per_shard=2, processes=1)
        records = read_prepared(tmp_path / "prepared")[0]
    else:
        (tmp_path / "3.mp4").write_text("no video")
    spec, labels = replace(SPEC, windows=1), 100 + np.arange(7)
    failures = DecodeFailures(7, 0.5)
    loader = WindowLoader(records, spec, FrameStore((16, 32), 0.0), failures, 3, 0, labels)

    if feed == "tf.data":
        read = [(w.numpy(), y.numpy()) for w, y in windows_dataset(loader).take(8)]
    else:
        read = [WindowBatches(loader)[step] for step in range(8)]

    assert len(failures.reasons) == (1 if where == "files" else 0)
    for windows, found in read:
        assert windows.shape == (3, 1, 4, 16, 32, 3) and found.shape == (3,)
        np.testing.assert_array_equal(np.rint(windows.mean(axis=(1, 2, 3, 4, 5)) / 30), found - 100)


def test_too_many_bad_videos_end_the_run_with_their_names(batches, videos):
    bad = [replace(v, path=v.path + ".gone") for v in videos[:6]]
    failures = DecodeFailures(10, 0.3)

    with pytest.raises(DataError, match=r"4 of 10 videos cannot be decoded") as error, failures.named():
        batches(bad + videos[6:], 6, failures=failures)
    assert ".gone" in str(error.value) and "data.max_failed_share" in str(error.value)


def test_fewer_videos_than_a_batch_are_refused(batches, videos):
    with pytest.raises(DataError, match=r"10 videos to train on, but `train.batch_size` is 16"):
        batches(videos, 1, batch_size=16)


def test_a_store_that_keeps_frames_gives_the_same_as_one_that_does_not(videos):
    indices = evenly_spaced_clips(12, 3, 4, 2)
    keeping, not_keeping = FrameStore((16, 32), 1.0), FrameStore((16, 32), 0.0)

    for _ in range(2):
        np.testing.assert_array_equal(keeping.clips(videos[0], indices), not_keeping.clips(videos[0], indices))


def test_evaluation_visits_every_video_once_and_marks_the_bad(videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    records = [*videos[:3], VideoRecord(str(tmp_path / "bad.mp4"), "bad.mp4"), *videos[3:]]
    failures = DecodeFailures(len(records), 0.5)

    store = FrameStore((16, 32), 0.0)
    read = list(clip_batches(records, store, failures, clips=2, frames=4, stride=1, batch_size=4))

    assert [batch.asked for batch in read] == [4, 4, 3] and read[0].clips.shape == (3, 2, 4, 16, 32, 3)
    assert [record for batch in read for record in batch.records] == [*videos[:3], *videos[3:]]
    assert list(failures.reasons) == [str(tmp_path / "bad.mp4")]
    for batch in read:
        for record, clips in zip(batch.records, batch.clips, strict=True):
            count = 12 + 2 * int(Path(record.path).stem)
            np.testing.assert_array_equal(frame_numbers(clips), evenly_spaced_clips(count, 2, 4, 1))


def test_python_exits_while_an_iterator_is_alive(shapes_folder):
    code = f"""
from hdc_keras.data.loading import *
from hdc_keras.data.pipeline import windows_dataset
from hdc_keras.data.records import read_records
from hdc_keras.data.sampling import WindowSpec
records = read_records({str(shapes_folder)!r})
loader = WindowLoader(records, WindowSpec(8), FrameStore((32, 32), 0), DecodeFailures(72, 0.1), 8, 0)
iterator = iter(windows_dataset(loader))
next(iterator)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True).returncode == 0
