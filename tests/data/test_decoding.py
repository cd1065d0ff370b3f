import struct
from dataclasses import replace

import av
import numpy as np
import pytest

from hdc_keras.data import decoding, tfio_decoding
from hdc_keras.data.decoding import count_frames, decode
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import ConfigError, VideoDecodeError
from tests.conftest import frame_numbers, numbered_frames


def encode(path, frames, codec="libx264", pixel_format="yuv420p", times=None, **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts = times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


CONTAINERS = {
    "sparse_key_frames.mp4": {"codec": "libx264"},
    "dense_key_frames.mp4": {"codec": "libx264", "g": "6"},
    "all_key_frames.mkv": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "h264_with_b_frames.avi": {"codec": "libx264"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "no_container.h264": {"codec": "libx264"},
    "vp9.webm": {"codec": "libvpx-vp9"},
}


@pytest.fixture(params=["pyav", "tfio"])
def any_decoder(request):
    if request.param == "pyav":
        return decode
    try:
        tfio_decoding.require_tfio()
    except ConfigError as error:
        pytest.skip(str(error))
    return tfio_decoding.decode


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_requested_frames(tmp_path, any_decoder, name):
    path = tmp_path / name
    encode(path, numbered_frames(30), **CONTAINERS[name])
    indices = np.array([[0, 1, 15], [29, 17, 2], [23, 23, 6]])

    clip = any_decoder(str(path), indices)

    assert count_frames(str(path)) == 30
    assert clip.shape == (3, 3, 48, 64, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(frame_numbers(clip), indices)


@pytest.fixture
def decoded(monkeypatch):
    """Timestamps of all frames that are decoded to find the requested ones."""
    times = []

    def recording(*arguments):
        for frame in frames_of(*arguments):
            times.append(frame.pts)
            yield frame

    frames_of = decoding._frames_of
    monkeypatch.setattr(decoding, "_frames_of", recording)
    return times


def test_only_the_needed_part_is_decoded(tmp_path, decoded):
    path = tmp_path / "long.mp4"
    write_video(path, np.zeros((3000, 16, 16, 3), np.uint8))

    decode(str(path), np.arange(2500, 2516))

    # 16 frames, after at most one group of pictures (250 frames for x264).
    assert 16 <= len(decoded) <= 16 + 250


def test_skipping_frames_that_no_other_frame_needs_does_not_change_the_rest(tmp_path, decoded):
    path = tmp_path / "b_frames.mp4"
    pictures = np.random.default_rng(0).integers(0, 256, (60, 6, 8, 3), dtype=np.uint8)
    encode(path, np.kron(pictures, np.ones((1, 8, 8, 1), np.uint8)), bf="3", b_strategy="0")
    every = decode(str(path), np.arange(60))
    assert len(decoded) == 60
    decoded.clear()

    for start in range(4):
        wanted = np.arange(start, 48, 4)
        np.testing.assert_array_equal(decode(str(path), wanted), every[wanted])

    # Three of four frames are B-frames; x264 uses some of them as references.
    assert len(decoded) < 0.8 * 4 * 48


def test_variable_frame_rates_are_indexed_by_frame_and_not_by_time(tmp_path):
    path = tmp_path / "variable.mkv"
    encode(path, numbered_frames(30), times=np.cumsum([1 + (i % 5) for i in range(30)]).tolist(), g="8")

    np.testing.assert_array_equal(frame_numbers(decode(str(path), np.arange(0, 30, 3))), np.arange(0, 30, 3))


@pytest.mark.parametrize("size", [(33, 47), (48, 64), (20, 90)])
def test_frames_are_resized_to_any_size(tmp_path, size):
    path = tmp_path / "video.mp4"
    encode(path, numbered_frames(8))

    clip = decode(str(path), np.arange(8), size)

    assert clip.shape == (8, *size, 3)
    np.testing.assert_array_equal(frame_numbers(clip), np.arange(8))


def test_videos_of_odd_width_and_height_decode(tmp_path):
    path = tmp_path / "odd.mkv"
    encode(path, numbered_frames(8, (35, 51)), codec="ffv1", pixel_format="bgr0")

    assert decode(str(path), np.arange(8)).shape == (8, 35, 51, 3)


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [None, (16, 32), (24, 48)])
def test_stored_rotation_is_applied(tmp_path, quarter_turns, size):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    encode(tmp_path / "video.mp4", np.stack([np.rot90(upright, quarter_turns)] * 3))
    store_rotation(tmp_path / "video.mp4", quarter_turns)

    clip = decode(str(tmp_path / "video.mp4"), np.arange(3), size)

    height, width = size or (16, 32)
    assert clip.shape == (3, height, width, 3)
    expected = upright.repeat(3, axis=0).repeat(3, axis=1)[:: 48 // height, :: 96 // width]
    assert np.abs(clip.astype(int) - expected).mean() < 8  # H.264 blurs the edges of the square


def store_rotation(path, clockwise_quarter_turns):
    """Set the rotation that players apply, in the matrix of the track header (ISO 14496-12)."""
    data = bytearray(path.read_bytes())
    start = data.index(matrix_bytes(0), data.index(b"tkhd"))
    matrix = matrix_bytes(clockwise_quarter_turns)
    data[start : start + len(matrix)] = matrix
    path.write_bytes(data)


def matrix_bytes(clockwise_quarter_turns):
    """The matrix as it is stored in a file: 16.16 fixed-point numbers, and 2.30 in the last column."""
    one = 1 << 16
    a, b, c, d = {
        0: (one, 0, 0, one),
        1: (0, one, -one, 0),
        2: (-one, 0, 0, -one),
        3: (0, -one, one, 0),
    }[clockwise_quarter_turns]
    return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


def test_a_file_that_is_not_a_video_is_named(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")

    with pytest.raises(VideoDecodeError, match=r"notes\.mp4: .*Invalid data"):
        count_frames(str(path))


def test_a_truncated_video_is_named(tmp_path):
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    encode(whole, numbered_frames(30))
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    with pytest.raises(VideoDecodeError, match=r"cut\.mp4"):
        decode(str(cut), np.arange(30))


def test_frames_before_a_truncation_equal_those_of_the_whole_file(tmp_path):
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    encode(whole, np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8))
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    count = count_frames(str(cut))

    assert 20 < count < 40
    first_half = np.arange(count // 2)
    np.testing.assert_array_equal(decode(str(cut), first_half), decode(str(whole), first_half))


def test_a_few_listed_but_missing_frames_repeat_the_last_frame(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    encode(path, numbered_frames(20))
    index = decoding.index_frames(str(path))
    monkeypatch.setattr(decoding, "index_frames", lambda _: with_missing_frames(index, 2))

    np.testing.assert_array_equal(frame_numbers(decode(str(path), np.array([18, 19, 20, 21]))), [18, 19, 19, 19])


def test_many_missing_frames_are_an_error(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    encode(path, numbered_frames(20))
    index = decoding.index_frames(str(path))
    monkeypatch.setattr(decoding, "index_frames", lambda _: with_missing_frames(index, 30))

    with pytest.raises(VideoDecodeError, match="decoding ends after 20 of 50 frames"):
        decode(str(path), np.array([18, 49]))


def with_missing_frames(index, count):
    """An index that lists frames after the last one of the file, as some containers do."""
    added = index.timestamps[-1] + 512 * np.arange(1, count + 1)
    return replace(index, count=index.count + count, timestamps=np.append(index.timestamps, added))


def test_frames_too_large_to_be_real_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_MAX_PIXELS", 1000)
    path = tmp_path / "video.mp4"
    encode(path, numbered_frames(4))

    with pytest.raises(VideoDecodeError, match="claims frames of 64 x 48 pixels"):
        decode(str(path), np.arange(4))


def test_an_index_outside_the_video_is_refused(tmp_path):
    path = tmp_path / "video.mp4"
    encode(path, numbered_frames(4))

    with pytest.raises(ValueError, match=r"must lie in \[0, 4\)"):
        decode(str(path), np.array([4]))
