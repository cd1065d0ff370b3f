"""Small sets in the exact layouts of the official releases, including their quirks."""

import json

import pytest

from hdc_keras.config import DataConfig
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.records import with_splits
from hdc_keras.errors import DataError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\r\n".join(lines) + "\r\n")  # The releases use Windows line ends.


def read(path, **options):
    return read_dataset(DataConfig(path=str(path), **options))


def splits(records):
    return {record.video_id: record.split for record in records}


@pytest.fixture
def ucf101(tmp_path):
    """Two classes with two groups each; the name of one class is spelled in two ways."""
    videos, lists = tmp_path / "UCF-101", tmp_path / "ucfTrainTestlist"
    for group in (1, 8):
        for clip in (1, 2):
            touch(videos, f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{group:02d}_c{clip:02d}.avi")
            touch(videos, f"HandstandPushups/v_HandStandPushups_g{group:02d}_c{clip:02d}.avi")
    write(lists / "classInd.txt", "1 ApplyEyeMakeup", "37 HandstandPushups")
    write(
        lists / "trainlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi 1",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 37",
        "HandstandPushups/v_HandStandPushups_g08_c02.avi 37",
    )
    write(
        lists / "testlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c02.avi",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
        "HandstandPushups/v_HandStandPushups_g01_c02.avi",
    )
    return tmp_path


@pytest.mark.parametrize("given", ["", "UCF-101"])
def test_ucf101_is_recognised_and_read_by_its_lists(ucf101, given):
    records, notes = read(ucf101 / given)

    assert notes == [f"UCF101: official split 1 in {ucf101 / 'ucfTrainTestlist'}, 8 videos"]
    assert {record.label for record in records} == {"ApplyEyeMakeup", "HandstandPushups"}
    assert {record.group for record in records if record.split == "test"} == {
        "ApplyEyeMakeup_g01",
        "HandstandPushups_g01",
    }
    assert len(records) == 8 and sum(record.split == "train" for record in records) == 4


def test_ucf101_names_match_regardless_of_case_and_suffix(ucf101):
    folder = ucf101 / "UCF-101" / "HandstandPushups"
    for path in sorted(folder.iterdir()):
        path.rename(folder / path.name.replace("HandStand", "Handstand").replace(".avi", ".mp4"))
    folder.rename(folder.with_name("HandStandPushups"))

    records, notes = read(ucf101)

    assert len(records) == 8
    assert {record.label for record in records} == {"ApplyEyeMakeup", "HandstandPushups"}
    assert notes[1:] == [
        "videos spelled differently than in the lists: 4 (HandstandPushups/v_HandStandPushups_g08_c01, "
        "HandstandPushups/v_HandStandPushups_g08_c02, HandstandPushups/v_HandStandPushups_g01_c01, ...)"
    ]


def test_ucf101_class_folders_that_are_links_are_read(ucf101):
    (ucf101 / "UCF-101" / "ApplyEyeMakeup").rename(ucf101 / "elsewhere")
    (ucf101 / "UCF-101" / "ApplyEyeMakeup").symlink_to(ucf101 / "elsewhere")

    records, notes = read(ucf101 / "UCF-101")

    assert len(notes) == 1 and len(records) == 8


def test_missing_and_unlisted_videos_are_reported(ucf101):
    (ucf101 / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c02.avi").unlink()
    touch(ucf101 / "UCF-101", "ApplyEyeMakeup/v_ApplyEyeMakeup_g09_c01.avi")

    records, notes = read(ucf101)

    assert len(records) == 7
    assert notes[1:] == [
        "listed videos that are missing: 1 (ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c02)",
        "videos left out because no list names them: 1 (v_ApplyEyeMakeup_g09_c01.avi)",
    ]


def test_without_its_lists_ucf101_is_split_by_group(ucf101):
    for path in (ucf101 / "ucfTrainTestlist").iterdir():
        path.unlink()

    records, notes = read(ucf101 / "UCF-101")
    sides = {}
    for record in with_splits(records, 0.5, 0):
        sides.setdefault(record.group, set()).add(record.split)

    assert notes[0] == "UCF101: 8 videos" and "trainlist01.txt" in notes[1] and "drawn by group" in notes[1]
    assert len(sides) == 4 and all(len(found) == 1 for found in sides.values())


def test_without_its_lists_ucf101_is_split_by_its_split_folders(tmp_path):
    names = ["train/Run/v_Run_g01_c01.avi", "train/Run/v_Run_g02_c01.avi", "val/Run/v_Run_g03_c01.avi"]
    touch(tmp_path, *names)

    records, notes = read(tmp_path)

    assert splits(records) == dict(zip(names, ["train", "train", "test"], strict=True))
    assert {r.label for r in records} == {"Run"} and [r.group for r in records] == ["Run_g01", "Run_g02", "Run_g03"]
    assert "no official lists" in notes[1] and "by group" not in notes[1] and "train/ (2), val/ (1)" in notes[2]


def test_every_malformed_line_of_the_lists_is_reported(ucf101):
    lists = ucf101 / "ucfTrainTestlist"
    write(
        lists / "trainlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", "Aply/v_Aply_g08_c01.avi 1", "what"
    )

    with pytest.raises(DataError) as error:
        read(ucf101)

    message = str(error.value)
    assert "2 problem(s)" in message and f"{lists / 'trainlist01.txt'}, line 2" in message and ", line 3" in message


def test_missing_annotations_are_an_error(ucf101, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read(ucf101, annotations=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"contains no official lists. Expected trainlist02.txt"):
        read(ucf101, layout="ucf101", annotations=str(ucf101 / "UCF-101"), official_split=2)


@pytest.fixture
def hmdb51(tmp_path):
    """Names with spaces, `#`, `;` and brackets, as in the release."""
    videos, lists = tmp_path / "hmdb51", tmp_path / "testTrainMulti_7030_splits"
    clap = ["#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi", "Hitch;_(2005)_clap_u_nm_np1_fr_med_1.avi"]
    hair = [f"April_09_brush_hair_u_nm_np1_ba_goo_{number}.avi" for number in (0, 1)]
    touch(videos / "clap", *clap, "Faith Rewarded_clap_h_cm_np1_le_bad_12.avi")
    touch(videos / "brush_hair", *hair)
    write(
        lists / "clap_test_split1.txt",
        f"{clap[0]} 1 ",
        f"{clap[1]} 2 ",
        "Faith Rewarded_clap_h_cm_np1_le_bad_12.avi 0 ",
    )
    write(lists / "brush_hair_test_split1.txt", f"{hair[0]} 1 ", f"{hair[1]} 1 ")
    return tmp_path


def test_hmdb51_is_recognised_and_read_by_its_lists(hmdb51):
    records, notes = read(hmdb51)

    assert splits(records) == {
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi": "train",
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_1.avi": "train",
        "clap/#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi": "train",
        "clap/Hitch;_(2005)_clap_u_nm_np1_fr_med_1.avi": "test",
    }
    assert {record.group for record in records} == {"brush_hair/April_09", "clap/#20_Rhythm", "clap/Hitch;_(2005)"}
    assert notes[0] == f"HMDB51: official split 1 in {hmdb51 / 'testTrainMulti_7030_splits'}, 4 videos"
    assert notes[1:] == ["clips left out because official split 1 does not use them: 1"]


def test_hmdb51_copies_with_other_punctuation_are_found(hmdb51):
    clap = hmdb51 / "hmdb51" / "clap"
    (clap / "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi").rename(clap / "-20-Rhythm_clap_u_nm_np1_fr_goo_0.avi")
    (clap / "Hitch;_(2005)_clap_u_nm_np1_fr_med_1.avi").rename(clap / "Hitch__2005__clap_u_nm_np1_fr_med_1.mp4")

    records, notes = read(hmdb51)

    assert len(records) == 4
    assert notes[2].startswith("videos spelled differently than in the lists: 2 (clap/#20_Rhythm")


def test_hmdb51_lists_with_an_unknown_code_are_refused(hmdb51):
    file = hmdb51 / "testTrainMulti_7030_splits" / "clap_test_split1.txt"
    write(file, "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi 3")

    with pytest.raises(DataError, match=r"clap_test_split1.txt, line 1: expected NAME.avi and 0, 1 or 2. Received"):
        read(hmdb51)


HEADER = "label,youtube_id,time_start,time_end,split"


@pytest.fixture
def kinetics(tmp_path):
    """Clips named in both ways, ids that differ only in case, a missing clip, and two clips of one video."""
    touch(
        tmp_path / "train", "air drumming/-Ab_cdEFG12_000012_000022.mp4", "air drumming/-ab_cdEFG12_000003_000013.mp4"
    )
    touch(tmp_path / "train", "abseiling/Zz-9yyyyyyy.mp4", "abseiling/-Ab_cdEFG12_000040_000050.mp4")
    touch(tmp_path / "val", "abseiling/valvalval00_000001_000011.mp4", "abseiling/tsttsttst00_000001_000011.mp4")
    write(
        tmp_path / "annotations" / "train.csv",
        HEADER,
        "air drumming,-Ab_cdEFG12,12,22,train",
        "air drumming,-ab_cdEFG12,3,13,train",
        "abseiling,Zz-9yyyyyyy,5,15,train",
        '"abseiling",-Ab_cdEFG12,40,50,train',
        "abseiling,gonegonegon,5,15,train",
    )
    write(tmp_path / "annotations" / "validate.csv", HEADER, "abseiling,valvalval00,1,11,validate")
    write(tmp_path / "annotations" / "test.csv", "youtube_id,time_start,time_end", "tsttsttst00,1,11")
    return tmp_path


def test_kinetics_is_recognised_and_missing_clips_are_counted(kinetics):
    records, notes = read(kinetics)

    assert splits(records) == {
        "-Ab_cdEFG12_000012_000022": "train",
        "-ab_cdEFG12_000003_000013": "train",
        "Zz-9yyyyyyy": "train",
        "-Ab_cdEFG12_000040_000050": "train",
        "valvalval00_000001_000011": "test",
    }
    assert [record.label for record in records if record.group == "-Ab_cdEFG12"] == ["air drumming", "abseiling"]
    assert notes == [
        f"Kinetics: official lists in {kinetics / 'annotations'}, 5 videos",
        "the official validation set serves as the test set, as is usual for Kinetics",
        "clips left out because they belong to the official test set: 1",
        "listed videos that are missing: 1 (gonegonegon_000005_000015)",
    ]


def test_kinetics_without_lists_says_what_is_expected(tmp_path):
    touch(tmp_path, "abseiling/a_000001_000011.mp4")

    with pytest.raises(DataError, match=r"no Kinetics list found\. Expected CSV files with the columns youtube_id"):
        read(tmp_path, layout="kinetics")


def test_an_ordinary_class_folder_next_to_official_lists_is_read_without_them(ucf101):
    touch(ucf101 / "mine", "run/a.mp4", "walk/b.mp4")

    records, notes = read(ucf101 / "mine")

    assert [record.label for record in records] == ["run", "walk"]
    assert notes == ["class folders: 2 classes, 2 videos"]


def test_a_kinetics_list_that_cannot_be_read_is_named_with_its_line(kinetics):
    file = kinetics / "annotations" / "train.csv"
    file.write_bytes(file.read_bytes() + b"caf\xe9,gonegonegon,5,15,train\r\n")
    last = len(file.read_bytes().splitlines())

    with pytest.raises(DataError, match=rf"train.csv, line {last}: `label` is not UTF-8 \(byte 0xE9\)"):
        read(kinetics)


def test_files_of_other_kinds_are_counted_and_official_lists_are_not(ucf101):
    touch(ucf101, "UCF-101/ApplyEyeMakeup/._v_ApplyEyeMakeup_g01_c01.avi", "UCF-101/README.md")

    records, notes = read(ucf101)

    assert len(records) == 8 and notes[1:] == ["ignored: 1 .md, 1 hidden or system"]


@pytest.fixture
def ssv2(tmp_path):
    """Five videos and the lists of Something-Something V2, of which one names a missing video."""
    touch(tmp_path / "20bn-something-something-v2", "1.webm", "22.webm", "333.webm", "4.webm", "50.webm")
    entries = {
        "train": [
            {"id": "1", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]},
            {"id": "22", "label": "x", "template": "Putting [something similar to other things] on the table"},
            {"id": "999", "template": "Holding [something]"},
        ],
        "validation": [{"id": "333", "template": "Holding [something]"}],
        "test": [{"id": "4"}],
    }
    for name, content in entries.items():
        write(tmp_path / "labels" / f"{name}.json", json.dumps(content))
    write(tmp_path / "labels" / "labels.json", json.dumps({"Holding something": "0"}))
    return tmp_path


def test_something_something_is_recognised_and_read_by_its_lists(ssv2):
    videos = read(ssv2 / "20bn-something-something-v2")

    assert [(record.video_id, record.label, record.split, record.group) for record in videos.records] == [
        ("1", "Holding something", "train", None),
        ("22", "Putting something similar to other things on the table", "train", None),
        ("333", "Holding something", "test", None),
    ]
    notes = " ".join(videos.notes)
    assert "Something-Something V2: official lists in" in notes and "serves as the test set" in notes
    assert "belong to the official test set: 1" in notes and "missing: 1 (999)" in notes
    assert "no list names them: 1 (50.webm)" in notes


def test_older_names_of_its_lists_are_found(ssv2):
    for file in (ssv2 / "labels").iterdir():
        file.rename(file.with_name(f"something-something-v2-{file.name}"))

    videos = read(ssv2, annotations=str(ssv2 / "labels"), layout="something-something-v2")

    assert len(videos.records) == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.json", '[{"id": "1", "template": ""}]', ["train.json, entry 1: expected an object with"]),
        (
            "train.json",
            "[1, {}]",
            ["train.json, entry 1: expected an object. Received: 1", "entry 2: expected an object with"],
        ),
        ("train.json", "{}", ["train.json: expected an array of objects. Received: {}"]),
        ("validation.json", "[", ["validation.json: cannot be read as JSON"]),
        ("old-train.json", "[]", ["contains several lists (old-train.json, train.json)"]),
    ],
)
def test_malformed_entries_of_its_lists_are_reported(ssv2, name, content, said):
    write(ssv2 / "labels" / name, content)

    with pytest.raises(DataError) as raised:
        read(ssv2, layout="something-something-v2")

    for text in said:
        assert text in str(raised.value)


@pytest.fixture
def diving48(tmp_path):
    """Three dives of two YouTube videos, and the lists of Diving48."""
    touch(tmp_path / "rgb", "-mmq0PT-u8k_00155.mp4", "-mmq0PT-u8k_00156.mp4", "2x00lRzlTVQ_00000.mp4")
    entry = {"start_frame": 0, "end_frame": 48}
    train = [{"vid_name": f"-mmq0PT-u8k_0015{number}", "label": 1} | entry for number in (5, 6)]
    write(tmp_path / "Diving48_V2_train.json", json.dumps(train))
    write(tmp_path / "Diving48_V2_test.json", json.dumps([{"vid_name": "2x00lRzlTVQ_00000", "label": 0} | entry]))
    write(tmp_path / "Diving48_vocab.json", json.dumps([["Back", "15som", "05Twis", "FREE"], ["Forward", "25som"]]))
    return tmp_path


def test_diving48_is_recognised_and_read_by_its_lists(diving48):
    videos = read(diving48 / "rgb")

    assert [(record.video_id, record.label, record.split, record.group) for record in videos.records] == [
        ("-mmq0PT-u8k_00155", "Forward 25som", "train", "train/-mmq0PT-u8k"),
        ("-mmq0PT-u8k_00156", "Forward 25som", "train", "train/-mmq0PT-u8k"),
        ("2x00lRzlTVQ_00000", "Back 15som 05Twis FREE", "test", "test/2x00lRzlTVQ"),
    ]
    assert len(videos.notes) == 1


def test_without_its_vocabulary_classes_of_diving48_are_numbers(diving48):
    (diving48 / "Diving48_vocab.json").unlink()

    videos = read(diving48 / "rgb")

    assert {record.label for record in videos.records} == {"0", "1"}
    assert "classes are numbers, because there is no Diving48_vocab.json" in videos.notes


def test_a_class_that_diving48_does_not_have_is_reported(diving48):
    write(diving48 / "Diving48_V2_test.json", json.dumps([{"vid_name": "2x00lRzlTVQ_00000", "label": 48}]))

    with pytest.raises(
        DataError, match=r"Diving48_V2_test\.json, entry 1: expected an object with `vid_name` and the num"
    ):
        read(diving48 / "rgb")


@pytest.mark.parametrize("layout", ["something-something-v2", "diving48", "jester"])
def test_a_layout_without_its_lists_says_what_is_expected(tmp_path, layout):
    touch(tmp_path / "videos", "1.mp4")
    (tmp_path / "nothing").mkdir()

    with pytest.raises(DataError, match=r"Expected .*train\.\w+ and .*\.\w+ in or next to the videos\. Set data"):
        read(tmp_path / "videos", layout=layout)
    with pytest.raises(DataError, match="nothing: contains no official lists"):
        read(tmp_path / "videos", layout=layout, annotations=str(tmp_path / "nothing"))


@pytest.fixture
def jester(tmp_path):
    """Three folders of frames and the lists of Jester, of which one names a missing folder."""
    for name in ("1", "22", "333", "50"):
        touch(tmp_path / "20bn-jester-v1" / name, "00001.jpg", "00002.jpg", "00003.jpg")
    write(tmp_path / "jester-v1-train.csv", "1;Swiping Left", "22;Doing other things", "999;Swiping Left")
    write(tmp_path / "jester-v1-validation.csv", "333;Swiping Left")
    write(tmp_path / "jester-v1-test.csv", "50")
    return tmp_path


def test_jester_is_recognised_and_its_folders_of_frames_are_videos(jester):
    videos = read(jester / "20bn-jester-v1")

    assert [(record.video_id, record.label, record.split) for record in videos.records] == [
        ("1", "Swiping Left", "train"),
        ("22", "Doing other things", "train"),
        ("333", "Swiping Left", "test"),
    ]
    assert "Jester: official lists in" in videos.notes[0] and "missing: 1 (999)" in " ".join(videos.notes)
    assert "no list names them: 1 (50)" in " ".join(videos.notes) and "ignored" not in " ".join(videos.notes)


def test_malformed_lines_of_jester_are_reported(jester):
    write(jester / "jester-v1-validation.csv", "333 Swiping Left")

    with pytest.raises(DataError, match=r"jester-v1-validation\.csv, line 1: expected ID;CLASS\. Received: 333"):
        read(jester / "20bn-jester-v1")


@pytest.mark.parametrize("content", ["[]", '{"images": []}', '[{"id": "7", "template": "x"}]', "[1"])
def test_lists_of_another_set_nearby_do_not_change_how_a_folder_is_read(tmp_path, content):
    touch(tmp_path / "mine", "walk/1.mp4", "walk/2.mp4", "run/11.mp4")
    for name in ("train", "validation"):
        write(tmp_path / "other" / f"{name}.json", content)
    write(tmp_path / "jester-v1-train.csv", "1;x")
    write(tmp_path / "jester-v1-validation.csv", "2;x")
    touch(tmp_path / "frames", *(f"{clip}/{frame}.jpg" for clip in ("a", "b") for frame in range(3)))

    assert [record.label for record in read(tmp_path / "mine").records] == ["run", "walk", "walk"]
    assert [record.video_id for record in read(tmp_path / "frames").records] == ["a", "b"]
