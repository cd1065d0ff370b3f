"""FineGym in the layout of its lists and of the folders that its users have."""

import json

import numpy as np
import pytest

from hdc_keras.config import DataConfig
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.loading import FrameStore
from hdc_keras.errors import DataError
from tests.conftest import frame_numbers
from tests.data.containers import video

FIRST, SECOND = "A0xAXXysHUo", "-0LtLS9wROk"
VAULT, BEAM = f"{FIRST}_E_000001_000003", f"{SECOND}_E_000000_000002"
# Names have whole seconds, rounded down; the times are exact.
TRAIN = [f"{VAULT}_A_0000_0000 0", f"{VAULT}_A_0000_0001 2"]
TEST = [f"{BEAM}_A_0000_0001 1"]
CATEGORIES = [
    "Clabel:   0; set:  1; Glabel:   1; (VT) round-off, flic-flac on",
    "Clabel:   1; set: 33; Glabel: 290; (BB) salto backward tucked",
    "Clabel:   2; set: 35; Glabel: 359; (BB) salto backward tucked",
]
TIMES = {
    FIRST: {
        "E_000001_000003": {
            "event": 1,
            "timestamps": [[1.2, 3.0]],
            "segments": {
                "A_0000_0000": {"stages": 1, "timestamps": [[0.1, 0.5]]},
                "A_0000_0001": {"stages": 3, "timestamps": [[0.6, 0.9], [0.9, 1.1], [1.1, 1.4]]},
            },
        },
        "E_000009_000010": {"event": 2, "timestamps": [[9.0, 10.0]], "segments": None},
    },
    SECOND: {
        "E_000000_000002": {
            "event": 3,
            "timestamps": [[0.5, 2.5]],
            "segments": {"A_0000_0001": {"stages": 1, "timestamps": [[0.3, 1.0]]}},
        }
    },
}


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def read(path, **options):
    return read_dataset(DataConfig(path=str(path), **options))


@pytest.fixture
def lists(tmp_path):
    folder = tmp_path / "gym" / "annotations"
    write(folder / "gym99_train_element_v1.1.txt", *TRAIN)
    write(folder / "gym99_val_element.txt", *TEST)
    write(folder / "gym99_categories.txt", *CATEGORIES)
    write(folder / "finegym_annotation_info_v1.1.json", json.dumps(TIMES))
    return folder


def first_frames(records):
    """Numbers of the first and the last frame of each video, which has 10 frames a second."""
    store = FrameStore((48, 64), 0.0)
    return [frame_numbers(store.clips(one, np.array([0, store.count(one) - 1]))).tolist() for one in records]


def test_clips_of_actions_are_recognised_and_read_by_the_lists(lists):
    for line in (*TRAIN, *TEST):
        video(lists.parent / "subactions", f"{line.split()[0]}.mp4")

    videos = read(lists.parent / "subactions")

    assert [(one.video_id, one.label, one.split, one.group, one.segment) for one in videos.records] == [
        (f"{VAULT}_A_0000_0000", "(VT) round-off, flic-flac on", "train", f"train/{FIRST}", None),
        (f"{VAULT}_A_0000_0001", "(BB) salto backward tucked [set 35]", "train", f"train/{FIRST}", None),
        (f"{BEAM}_A_0000_0001", "(BB) salto backward tucked [set 33]", "test", f"test/{SECOND}", None),
    ]
    assert videos.notes == [
        f"FineGym (Gym99): official lists in {lists}, 3 videos",
        "the official validation set serves as the test set, as is usual for FineGym",
    ]


def test_clips_of_events_give_parts_with_the_official_times(lists):
    for event in (VAULT, BEAM):
        video(lists.parent / "events", f"{event}.mp4", frames=20)

    records = read(lists.parent / "events").records

    assert [one.segment for one in records] == [(0.1, 0.5), (0.6, 1.4), (0.3, 1.0)]
    assert first_frames(records) == [[1, 4], [6, 13], [3, 9]]


def test_youtube_videos_give_parts_counted_from_the_event(lists):
    for name in (FIRST, SECOND):
        video(lists.parent / "videos" / name, f"{name}.mkv", frames=31)

    records = read(lists.parent / "videos").records

    assert [one.segment for one in records] == [(1.3, 1.7), (1.8, 2.6), (0.8, 1.5)]
    assert first_frames(records) == [[13, 16], [18, 25], [8, 14]]
    assert len({one.path for one in records}) == 2


def test_the_shortest_file_that_holds_an_action_is_used(lists):
    video(lists.parent / "videos", f"{FIRST}.mp4", frames=31)
    video(lists.parent / "events", f"{VAULT}.mp4", frames=20)
    video(lists.parent / "subactions", f"{VAULT}_A_0000_0000.mp4")
    video(lists.parent / "videos", "A0xAXXysHU_.mp4")

    videos = read(lists.parent)

    assert [(one.path.rpartition("/")[2], one.segment) for one in videos.records] == [
        (f"{VAULT}_A_0000_0000.mp4", None),
        (f"{VAULT}.mp4", (0.6, 1.4)),
    ]
    assert f"listed videos that are missing: 1 ({BEAM}_A_0000_0001)" in videos.notes
    assert "videos left out because no list names them: 1 (A0xAXXysHU_.mp4)" in videos.notes


def test_without_the_official_times_parts_are_whole_seconds_and_a_note_says_so(lists):
    (lists / "finegym_annotation_info_v1.1.json").unlink()
    video(lists.parent / "videos", f"{FIRST}.mp4", frames=31)
    video(lists.parent / "videos", f"{BEAM}.mp4", frames=20)

    videos = read(lists.parent / "videos")

    assert [one.segment for one in videos.records] == [(1.0, 2.0), (1.0, 3.0), (0.0, 2.0)]
    assert any(note.startswith("times are whole seconds from the names of the actions") for note in videos.notes)


def test_gym288_has_lists_of_its_own_and_both_may_be_there(lists):
    for line in (*TRAIN, *TEST):
        video(lists.parent / "subactions", f"{line.split()[0]}.mp4")
    write(lists / "gym288_train_element_v1.1.txt", TRAIN[0].replace(" 0", " 281"))
    write(lists / "gym288_val_element.txt", TEST[0].replace(" 1", " 7"))

    detected = read(lists.parent / "subactions")
    chosen = read(lists.parent / "subactions", layout="gym288")

    assert len(detected.records) == 3 and "data.layout=gym288 uses them" in detected.notes[2]
    assert [one.label for one in chosen.records] == ["281", "7"]
    assert "classes are numbers, because there is no gym288_categories.txt" in chosen.notes


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "gym99_val_element.txt",
            "x 1",
            "gym99_val_element.txt, line 1: expected ID_E_START_END_A_START_END and the num",
        ),
        (
            "gym99_val_element.txt",
            f"{BEAM}_A_0000_0001 3",
            "gym99_val_element.txt, line 1: class 3 is not in gym99_categories.txt",
        ),
        ("gym99_val_element.txt", TRAIN[0], "is already listed on line 1 of gym99_train_element_v1.1.txt"),
        ("gym99_val_element.txt", f"{BEAM}_A_0001_0001 1", "v1.1.json has no times of this action"),
        ("gym99_val_element.txt", f"{SECOND}_E_000007_000008_A_0001_0001 1", "v1.1.json has no times of this event"),
        ("gym99_categories.txt", "0 round-off", "gym99_categories.txt, line 1: expected Clabel: NUMBER; set: NUMBER"),
        (
            "gym99_train_element_v1.0.txt",
            TRAIN[0],
            "contains several lists (gym99_train_element_v1.0.txt, gym99_train_",
        ),
        ("finegym_annotation_info_v1.1.json", "[", "finegym_annotation_info_v1.1.json: cannot be read as JSON"),
        (
            "finegym_annotation_info_v1.1.json",
            "[]",
            "v1.1.json: expected an object with the events of each YouTube video",
        ),
    ],
)
def test_malformed_lists_are_reported(lists, name, content, said):
    for stem in (FIRST, SECOND):
        video(lists.parent / "videos", f"{stem}.mp4", frames=31)
    write(lists / name, content)

    with pytest.raises(DataError) as raised:
        read(lists.parent / "videos", layout="gym99")

    assert said in str(raised.value)


@pytest.mark.parametrize("layout", ["auto", "gym99"])
@pytest.mark.parametrize("missing", ["gym99_train_element_v1.1.txt", "gym99_val_element.txt"])
def test_one_list_without_the_other_is_refused(lists, layout, missing):
    for stem in (FIRST, SECOND):
        video(lists.parent / "videos", f"{stem}.mp4", frames=31)
    (lists / missing).unlink()

    with pytest.raises(DataError, match="FineGym needs both lists"):
        read(lists.parent / "videos", layout=layout)


def test_without_its_lists_a_layout_says_what_is_expected(tmp_path):
    video(tmp_path / "videos", f"{FIRST}.mp4")

    with pytest.raises(
        DataError, match=r"no lists of FineGym \(Gym288\) found\. Expected gym288_train_element\*\.txt and"
    ):
        read(tmp_path / "videos", layout="gym288")
    assert len(read(tmp_path / "videos").records) == 1
