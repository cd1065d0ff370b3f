import gc
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hdc_keras.data.loading import (
    PREFETCH_BATCHES,
    DecodeFailures,
    FrameStore,
    WaitClock,
    WindowBatches,
    WindowLoader,
    clip_batches,
)
from hdc_keras.data.pipeline import windows_dataset
from hdc_keras.data.preparing import prepare
from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.data.sampling import WindowSpec, count_steps, evenly_spaced_clips, sample_windows, video_keys
from hdc_keras.data.shards import read_prepared
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import DataError, VideoDecodeError
from tests.conftest import frame_numbers, numbered_frames

SPEC = WindowSpec(frames=4, stride=2, min_gap=3)


@pytest.fixture(scope="session")
def videos(once):
    """Ten numbered videos of different lengths."""

    def make(folder):
        for number in range(10):
            write_video(folder / f"{number}.mp4", numbered_frames(12 + 2 * number, (16, 32)))

    return read_records(once("numbered-videos", make))


@pytest.fixture(scope="session")
def prepared(once, videos):
    """The same videos, prepared, with two videos per shard."""
    return read_prepared(once("numbered-videos-prepared", lambda folder: prepare_pairs(videos, folder)))[0]


@pytest.fixture(scope="session")
def grey_videos(once):
    """Seven videos; video i has grey level 30 i."""

    def make(folder):
        for number in range(7):
            write_video(folder / f"{number}.mp4", np.full((12, 16, 32, 3), 30 * number, np.uint8))

    return read_records(once("grey-videos", make))


@pytest.fixture(scope="session")
def prepared_grey_videos(once, grey_videos):
    """The same videos, prepared, with two videos per shard."""
    return read_prepared(once("grey-videos-prepared", lambda folder: prepare_pairs(grey_videos, folder)))[0]


def prepare_pairs(records, folder):
    prepare(records, folder, size=(16, 32), videos_per_shard=2, processes=1)


@pytest.fixture(params=["tf.data", "threads"])
def batches(request):
    """The first batches of a set, both through tf.data and through the threads that serve JAX and PyTorch."""

    def read(records, count, *, budget=0.0, failures=None, batch_size=4, seed=0, **options):
        store, failures = FrameStore((16, 32), budget), failures or DecodeFailures(len(records), 0.5)
        loader = WindowLoader(records, SPEC, store, failures, batch_size, seed)
        if request.param == "tf.data":
            return [batch.numpy() for batch in windows_dataset(loader, **options).take(count)]
        dataset = WindowBatches(loader, **options)
        return [dataset[step] for step in range(count)]

    return read


def test_windows_consist_of_the_sampled_frames(batches, videos):
    first = batches(videos, 1)[0]

    assert first.shape == (4, 2, 4, 16, 32, 3) and first.dtype == np.uint8
    keys, counts = video_keys(video.video_id for video in videos), 12 + 2 * np.arange(len(videos))
    expected = {tuple(windows.ravel()) for windows in sample_windows(0, 0, keys, counts, SPEC)}
    assert {tuple(numbers.ravel()) for numbers in frame_numbers(first)} <= expected


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_the_same_seed_gives_the_same_batches_for_any_parallelism_and_memory(batches, videos, workers, budget):
    for batch, again in zip(batches(videos, 5), batches(videos, 5, workers=workers, budget=budget), strict=True):
        np.testing.assert_array_equal(batch, again)


@pytest.mark.parametrize("workers", [1, 8])
def test_shards_give_the_same_frames_as_files_even_after_a_restart(batches, videos, prepared, workers):
    from_files = batches(videos, 6)
    from_shards = batches(prepared, 6, workers=workers)
    resumed = batches(prepared, 3, start_step=3, workers=workers)

    for batch, stored in zip(from_files, from_shards, strict=True):
        np.testing.assert_array_equal(frame_numbers(batch), frame_numbers(stored))
        assert np.abs(batch.astype(int) - stored).max() <= 4  # JPEG is lossy.
    for stored, again in zip(from_shards[3:], resumed, strict=True):
        np.testing.assert_array_equal(stored, again)


def test_stored_frames_of_another_size_are_resized(prepared):
    failures = DecodeFailures(len(prepared), 0.1)
    loader = WindowLoader(prepared, SPEC, FrameStore((8, 24), 0.0), failures, 4, seed=0)

    in_graph = next(iter(windows_dataset(loader))).numpy()

    assert in_graph.shape == (4, 2, 4, 8, 24, 3)
    np.testing.assert_array_equal(frame_numbers(in_graph), frame_numbers(WindowBatches(loader)[0]))


def test_reading_resumes_where_it_stopped_even_within_an_epoch(batches, videos):
    for batch, again in zip(batches(videos, 6)[3:], batches(videos, 3, start_step=3), strict=True):
        np.testing.assert_array_equal(batch, again)


def test_epochs_differ_and_no_video_is_repeated_within_an_epoch(batches, grey_videos):
    read = [
        np.rint(batch.mean(axis=(1, 2, 3, 4, 5)) / 30).astype(int).tolist()
        for batch in batches(grey_videos, 8, batch_size=3)
    ]

    epochs = [read[0] + read[1], read[2] + read[3], read[4] + read[5], read[6] + read[7]]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_a_video_that_cannot_be_decoded_is_listed_and_replaced(batches, grey_videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("not a video")
    # The first video, which is black, is left out. So a black window would have to come from the bad file.
    records = [*grey_videos[1:], VideoRecord(str(bad), "bad.mp4")]
    failures = DecodeFailures(len(records), 0.5)

    read = batches(records, 6, failures=failures, batch_size=3)

    for batch in read:
        assert len(set(np.rint(batch.mean(axis=(1, 2, 3, 4, 5)) / 30).tolist()) - {0}) == 3
    assert list(failures.reasons) == [str(bad)]


@pytest.mark.parametrize("count", [6, 7])
def test_a_replacement_is_not_in_the_batch(batches, grey_videos, tmp_path, count):
    """Two videos cannot be decoded, so whole batches may have to be replaced."""
    (tmp_path / "bad.mp4").write_text("not a video")
    records = grey_videos[:count]
    for row in (1, 4):
        records[row] = replace(records[row], path=str(tmp_path / "bad.mp4"))

    read = batches(records, 60, failures=DecodeFailures(count, 0.5), batch_size=2)

    levels = [np.rint(batch.mean(axis=(1, 2, 3, 4, 5)) / 30).astype(int).tolist() for batch in read]
    assert all(one != other for one, other in levels)
    assert {level for pair in levels for level in pair} == set(range(count)) - {1, 4}


def test_a_batch_is_filled_as_long_as_one_video_can_be_decoded(batches, grey_videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("not a video")
    records = [replace(record, path=str(tmp_path / "bad.mp4")) for record in grey_videos[:6]] + grey_videos[6:]

    for batch in batches(records, 6, failures=DecodeFailures(7, 1.0), batch_size=3):
        assert set(np.rint(batch.mean(axis=(1, 2, 3, 4, 5)) / 30)) == {6}


@pytest.mark.parametrize("where", ["files", "shards"])
@pytest.mark.parametrize("feed", ["tf.data", "threads"])
def test_labels_belong_to_their_windows_even_if_a_video_is_replaced(
    grey_videos, prepared_grey_videos, tmp_path, where, feed
):
    records = prepared_grey_videos
    if where == "files":
        (tmp_path / "bad.mp4").write_text("not a video")
        records = [*grey_videos[:3], replace(grey_videos[3], path=str(tmp_path / "bad.mp4")), *grey_videos[4:]]
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


def test_too_many_videos_that_cannot_be_decoded_end_the_run(batches, videos):
    bad = [replace(video, path=video.path + ".gone") for video in videos[:6]]
    failures = DecodeFailures(10, 0.3)

    with pytest.raises(DataError, match=r"4 of 10 videos cannot be decoded") as error, failures.named():
        batches(bad + videos[6:], 6, failures=failures)
    assert ".gone" in str(error.value) and "data.max_failed_share" in str(error.value)


def test_fewer_videos_than_a_batch_are_refused(batches, videos):
    with pytest.raises(DataError, match=r"only 10 training videos, but `train.batch_size` is 16"):
        batches(videos, 1, batch_size=16)
    with pytest.raises(DataError, match="the set has no training videos"):
        count_steps(0, 4)
    with pytest.raises(DataError, match=r"Expected at least 2, .* Add videos\.$"):
        count_steps(1, 4)


def test_a_store_keeps_videos_within_its_budget_and_decodes_the_others_every_time(videos, tmp_path):
    copies = [replace(video, path=str(shutil.copy(video.path, tmp_path))) for video in videos[:2]]
    indices = evenly_spaced_clips(12, 3, 4, 2)
    uncached = FrameStore((16, 32), 0.0)
    expected = [uncached.clips(video, indices) for video in copies]
    # Room for the 12 frames of the first video, but not for the 14 of the second as well.
    store = FrameStore((16, 32), 25 * 16 * 32 * 3 / 1e9)

    for video, clips in zip(copies, expected, strict=True):
        np.testing.assert_array_equal(store.clips(video, indices), clips)
    for video in copies:
        Path(video.path).write_text("no longer a video")

    np.testing.assert_array_equal(store.clips(copies[0], indices), expected[0])
    with pytest.raises(VideoDecodeError):
        store.clips(copies[1], indices)


def test_a_video_that_cannot_be_decoded_takes_no_memory_from_the_others(videos, tmp_path):
    bad, good = (replace(video, path=str(shutil.copy(video.path, tmp_path))) for video in videos[:2])
    indices = evenly_spaced_clips(12, 3, 4, 2)
    store = FrameStore((16, 32), 0.0)
    expected = store.clips(good, indices)
    store = FrameStore((16, 32), 14 * 16 * 32 * 3 / 1e9)  # room for the good video alone
    store.count(bad)
    Path(bad.path).write_text("no longer a video")

    with pytest.raises(VideoDecodeError):
        store.clips(bad, indices)
    store.clips(good, indices)
    Path(good.path).write_text("no longer a video")

    np.testing.assert_array_equal(store.clips(good, indices), expected)


def test_evaluation_visits_every_video_once_and_lists_failures(videos, tmp_path):
    (tmp_path / "bad.mp4").write_text("not a video")
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


@pytest.mark.slow
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


class SlowLoader:
    """Stands for a `WindowLoader` whose videos take a while; remembers which it has loaded."""

    batch_size, labels = 2, None

    def __init__(self, seconds):
        self.seconds = seconds
        self.loaded = []

    def load(self, position):
        self.loaded.append(position)
        time.sleep(self.seconds)
        if position == 13:
            raise DataError("position 13 cannot be loaded")
        return np.int64(position), np.full((2, 1, 1, 1, 3), position, np.uint8)


def test_the_next_batches_are_made_while_the_model_trains():
    clock = WaitClock()
    batches = WindowBatches(SlowLoader(0.1), start_step=1, workers=2, clock=clock)

    first = batches[0]
    waited = clock.seconds
    time.sleep(0.4)  # a step
    second, third = batches[1], batches[2]

    assert [int(batch.min()) for batch in (first, second, third)] == [2, 4, 6]
    assert waited >= 0.09  # nothing was there yet
    assert clock.seconds - waited < 0.05
    assert len(batches.loader.loaded) <= 2 * (3 + PREFETCH_BATCHES)


def test_an_error_belongs_to_its_batch_and_batches_may_be_read_in_any_order():
    batches = WindowBatches(SlowLoader(0.0), workers=2)

    assert [int(batches[step].min()) for step in (0, 3, 4, 5, 1, 0)] == [0, 6, 8, 10, 2, 0]
    with pytest.raises(DataError, match="position 13"):
        batches[6]
    assert int(batches[7].min()) == 14


def test_threads_end_with_their_dataset():
    batches = WindowBatches(SlowLoader(0.0), workers=3)
    batches[0]
    alive = {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}

    del batches
    gc.collect()
    for thread in alive:
        thread.join(timeout=5)

    assert alive and not any(thread.is_alive() for thread in alive)
