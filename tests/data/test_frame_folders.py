"""Videos that are folders of images, one for each frame."""

import numpy as np
import pytest
from PIL import Image

from hdc_keras.config import DataConfig
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.decoding import count_frames, decode, stream_frames
from hdc_keras.data.inspection import inspect_video
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.preparing import prepare
from hdc_keras.data.records import read_videos
from hdc_keras.errors import DataError, VideoDecodeError
from tests.conftest import frame_numbers, numbered_frames


def write_frames(folder, count, name="{:05d}.jpg", first=1, size=(48, 64)):
    folder.mkdir(parents=True)
    for number, frame in enumerate(numbered_frames(count, size), first):
        Image.fromarray(frame).save(folder / name.format(number))


@pytest.fixture
def classes(tmp_path):
    """Three videos of two classes as folders of frames, and files that are none."""
    folder = tmp_path / "videos"
    write_frames(folder / "run" / "a", 12)
    write_frames(folder / "run" / "b", 5, "img_{}.png", first=8)  # from img_8.png to img_12.png
    write_frames(folder / "walk" / "c", 3)
    (folder / "walk" / "c" / "notes.txt").touch()
    (folder / "walk" / "c" / "._00002.jpg").touch()
    (folder / "walk" / "cover.jpg").touch()
    write_frames(folder / ".thumbnails" / "d", 3)
    return folder


def test_folders_of_frames_are_videos_with_classes(classes):
    videos = read_videos(classes)

    found = [(record.video_id, record.label, count_frames(record.path)) for record in videos.records]
    assert found == [("run/a", "run", 12), ("run/b", "run", 5), ("walk/c", "walk", 3)]
    assert videos.notes[0] == "folders of frames: 3 videos"


def test_frames_are_read_in_the_order_of_their_numbers(classes):
    indices = np.array([[4, 0], [2, 2]])

    clip = decode(str(classes / "run" / "b"), indices)
    small = FrameStore((24, 32), 0.0).clips(read_videos(classes).records[0], np.array([11, 0]))

    assert clip.shape == (2, 2, 48, 64, 3) and frame_numbers(clip).tolist() == indices.tolist()
    assert small.shape == (2, 24, 32, 3) and frame_numbers(small).tolist() == [11, 0]
    assert inspect_video(read_videos(classes).records[2]).frames == 3


def test_without_classes_they_are_unlabelled_and_a_manifest_may_name_them(tmp_path):
    for name in "ab":
        write_frames(tmp_path / "clips" / name, 4)
    (tmp_path / "manifest.csv").write_text("path,label\nclips/a,x\nclips/b,y\n")

    assert [record.label for record in read_videos(tmp_path / "clips").records] == [None, None]
    assert [count_frames(record.path) for record in read_videos(tmp_path).records] == [4, 4]


def test_images_beside_videos_are_ignored(classes, class_folder):
    write_frames(class_folder / "across" / "frames", 3)

    assert len(read_videos(class_folder).records) == 8


def test_prepared_folders_have_their_frames(classes, tmp_path):
    prepare(read_videos(classes).records, tmp_path / "prepared", size=(48, 64), processes=1)

    records = read_dataset(DataConfig(path=str(tmp_path / "prepared"))).records
    store = FrameStore((48, 64), 0.0)
    assert [store.count(record) for record in records] == [12, 5, 3]
    assert frame_numbers(store.clips(records[0], np.arange(12))).tolist() == list(range(12))


def test_what_cannot_be_read_is_named(classes, tmp_path):
    broken, empty = classes / "walk" / "c", tmp_path / "empty"
    (broken / "00002.jpg").write_text("not an image")
    empty.mkdir()
    (tmp_path / "manifest.csv").write_text("path\nempty\n")

    with pytest.raises(VideoDecodeError, match=r"c: 00002\.jpg: cannot identify image file"):
        decode(str(broken), np.array([1]))
    with pytest.raises(VideoDecodeError, match="has neither timestamps nor a frame rate"):
        list(stream_frames(str(broken), (48, 64), rate=5.0))
    with pytest.raises(VideoDecodeError, match="is a folder without images"):
        count_frames(str(empty))
    with pytest.raises(DataError, match="line 2: neither a file nor a folder of images"):
        read_videos(tmp_path / "manifest.csv")
