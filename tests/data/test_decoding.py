import av
import numpy as np
import pytest

from hdc_keras.data import decoding, tfio_decoding
from hdc_keras.data.decoding import count_frames, decode
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import ConfigError, VideoDecodeError
from tests.conftest import frame_numbers, numbered_frames


def encode(path, frames, codec="libx264", pixel_format="yuv420p", times=None, rotation=0, **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        if rotation:
            stream.metadata["rotate"] = str(rotation)
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
def test_any_frame_of_any_container_is_the_right_one(tmp_path, any_decoder, name):
    path = tmp_path / name
    encode(path, numbered_frames(30), **CONTAINERS[name])
    indices = np.array([[0, 1, 15], [29, 17, 2], [23, 23, 6]])

    clip = any_decoder(str(path), indices)

    assert count_frames(str(path)) == 30
    assert clip.shape == (3, 3, 48, 64, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(frame_numbers(clip), indices)


@pytest.fixture
def decoded(monkeypatch):
    """The times of the frames that are decoded on the way to those that are asked for."""
    times = []

    def noting(*arguments):
        for frame in frames_of(*arguments):
            times.append(frame.pts)
            yield frame

    frames_of = decoding._frames_of
    monkeypatch.setattr(decoding, "_frames_of", noting)
    return times


def test_only_the_part_that_is_needed_is_decoded(tmp_path, decoded):
    path = tmp_path / "long.mp4"
    write_video(path, np.zeros((3000, 16, 16, 3), np.uint8))

    decode(str(path), np.arange(2500, 2516))

    # 16 frames, and at most one group of pictures (250 frames for x264) before them.
    assert 16 <= len(decoded) <= 16 + 250


def test_frames_that_nothing_depends_on_are_passed_over_and_the_others_are_the_same(tmp_path, decoded):
    path = tmp_path / "b_frames.mp4"
    pictures = np.random.default_rng(0).integers(0, 256, (60, 6, 8, 3), dtype=np.uint8)
    encode(path, np.kron(pictures, np.ones((1, 8, 8, 1), np.uint8)), bf="3", b_strategy="0")
    every = decode(str(path), np.arange(60))
    assert len(decoded) == 60
    decoded.clear()

    for start in range(4):
        wanted = np.arange(start, 48, 4)
        np.testing.assert_array_equal(decode(str(path), wanted), every[wanted])

    # Of four frames three are B-frames; x264 makes some of them references too.
    assert len(decoded) < 0.8 * 4 * 48


def test_variable_frame_rate_is_indexed_by_frame_not_by_time(tmp_path):
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
def test_stored_rotation_is_applied(quarter_turns):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    stored = np.ascontiguousarray(np.rot90(upright, -quarter_turns))

    class Rotated:
        rotation = 90 * quarter_turns
        frame = av.VideoFrame.from_ndarray(stored, format="rgb24")

    converter = decoding._Converter((16, 32))
    reformat = converter.reformatter.reformat
    converter.reformatter = type("R", (), {"reformat": lambda self, f, **k: reformat(f.frame, **k)})()

    np.testing.assert_array_equal(converter(Rotated()), upright)


def test_a_file_that_is_no_video_is_named(tmp_path):
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


def test_damaged_frames_are_an_error_and_never_other_frames(tmp_path):
    path = tmp_path / "video.mkv"
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)
    encode(path, noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])

    count = count_frames(str(path))

    assert 0 < count < 60
    assert decode(str(path), np.arange(count // 2)).shape == (count // 2, 48, 64, 3)


def test_a_few_frames_that_a_container_promises_but_does_not_hold_repeat_the_last(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    encode(path, numbered_frames(20))
    honest = decoding.index_frames(str(path))
    lying = decoding.FrameIndex(
        22, np.append(honest.timestamps, honest.timestamps[-1] + [512, 1024]), honest.key_frames, honest.time_base, 25.0
    )
    monkeypatch.setattr(decoding, "index_frames", lambda _: lying)

    np.testing.assert_array_equal(frame_numbers(decode(str(path), np.array([18, 19, 20, 21]))), [18, 19, 19, 19])


def test_many_missing_frames_are_an_error(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    encode(path, numbered_frames(20))
    honest = decoding.index_frames(str(path))
    added = honest.timestamps[-1] + 512 * np.arange(1, 31)
    lying = decoding.FrameIndex(50, np.append(honest.timestamps, added), honest.key_frames, honest.time_base, 25.0)
    monkeypatch.setattr(decoding, "index_frames", lambda _: lying)

    with pytest.raises(VideoDecodeError, match="decoding ends after 20 of 50 frames"):
        decode(str(path), np.array([18, 49]))


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
