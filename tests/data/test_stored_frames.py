import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdc_keras.data import storage
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.sampling import WindowSpec
from hdc_keras.data.shards import EncodedVideo, read_frames, stored_video, write_shard
from hdc_keras.data.stored_frames import read_jpegs
from hdc_keras.errors import VideoDecodeError

SIZE = (64, 64)


@pytest.fixture(scope="module")
def jpegs():
    """300 frames of noise, about 5 kB each."""
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(300):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (*SIZE, 3), np.uint8)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


@pytest.fixture(scope="module")
def records(jpegs, tmp_path_factory):
    """Two videos of these frames in one shard."""
    shard = tmp_path_factory.mktemp("set") / "shard.tfrecord"
    videos = [VideoRecord(name, name, {"label": "größer"}) for name in ("a", "b")]
    index = write_shard(shard, [(video, EncodedVideo(jpegs, SIZE, 25.0)) for video in videos])
    return [
        replace(video, stored=stored_video(str(shard), entry))
        for video, entry in zip(videos, index["videos"], strict=True)
    ]


@pytest.fixture
def bytes_read(monkeypatch):
    """The number of bytes of each read."""
    read, spans_of = [], storage.read_spans

    def counting(path, spans):
        blocks = spans_of(path, spans)
        read.extend(map(len, blocks))
        return blocks

    monkeypatch.setattr(storage, "read_spans", counting)
    return read


@pytest.mark.parametrize(
    "sizes", [[1, 2], [100, 127, 128, 129, 5], [16383, 16384, 120, 122, 124], [2097152, 3, 2097140]]
)
def test_every_frame_is_found_whatever_its_size(tmp_path, sizes):
    """The sizes around which the length of a field takes one more byte."""
    frames = [bytes([number]) * size for number, size in enumerate(sizes, 1)]
    videos = [(VideoRecord(name, name), EncodedVideo(frames, (8, 8), 0.0)) for name in ("a", "b")]
    entries = write_shard(tmp_path / "shard.tfrecord", videos)["videos"]

    for entry in entries:
        stored = stored_video(str(tmp_path / "shard.tfrecord"), entry)
        assert stored.table > 0
        for position, frame in enumerate(frames):
            assert [*map(bytes, read_jpegs(stored, [position]))] == [frame]
        assert [*map(bytes, read_jpegs(stored, range(len(frames))))] == frames
        assert [*map(bytes, read_jpegs(replace(stored, table=0), range(len(frames))))] == frames


def test_a_window_of_16_frames_of_300_reads_a_tenth_of_the_record(records, bytes_read):
    for stored in (record.stored for record in records):
        whole = read_frames(replace(stored, table=0), np.arange(100, 116))
        before = sum(bytes_read)
        bytes_read.clear()

        np.testing.assert_array_equal(read_frames(stored, np.arange(100, 116)), whole)

        assert before == stored.size
        assert 10 * sum(bytes_read) < before
        assert len(bytes_read) == 2  # the table, and the frames
        bytes_read.clear()


@pytest.mark.parametrize("reader", ["tf.data", "threads"])
def test_both_readers_read_only_the_frames_of_their_windows(records, bytes_read, reader):
    loader = WindowLoader(records, WindowSpec(16), FrameStore(SIZE, 0.0), DecodeFailures(2, 0.1), 2, seed=0)
    if reader == "tf.data":
        from hdc_keras.data.pipeline import windows_dataset

        list(windows_dataset(loader, workers=1).take(1))  # to its end, so that no thread reads on
    else:
        loader.load(0)

    # Each of these reads serves one pair of windows, however many batches are read ahead.
    tables = [size for size in bytes_read if size == 8 * 300]
    assert tables and sum(bytes_read) / len(tables) * 8 < records[0].stored.size


def test_a_video_of_which_most_frames_are_needed_is_read_at_once(records, bytes_read):
    read_frames(records[1].stored, np.arange(0, 300, 2))

    assert bytes_read == [records[1].stored.size]


@pytest.mark.parametrize("place", ["table", "frame"])
def test_damage_of_a_needed_frame_or_of_the_table_is_found(records, tmp_path, place):
    stored = records[0].stored
    data = bytearray(Path(stored.shard).read_bytes()[: stored.size])
    data[stored.table + 4 * (300 + 299) if place == "table" else stored.size - 1000] ^= 1
    (tmp_path / "shard.tfrecord").write_bytes(data)
    damaged = replace(stored, shard=str(tmp_path / "shard.tfrecord"))

    with pytest.raises(VideoDecodeError, match=r"shard.tfrecord, byte 0: frame 299 is damaged. .*--verify"):
        read_frames(damaged, np.array([299]))
    assert read_frames(damaged, np.array([7])).shape == (1, *SIZE, 3)


def test_a_table_of_impossible_sizes_is_damaged(records, tmp_path):
    stored = records[0].stored
    data = bytearray(Path(stored.shard).read_bytes()[: stored.size])
    data[stored.table + 3] = 255
    (tmp_path / "shard.tfrecord").write_bytes(data)

    with pytest.raises(VideoDecodeError, match="its table of frames is damaged"):
        read_frames(replace(stored, shard=str(tmp_path / "shard.tfrecord")), np.array([7]))
