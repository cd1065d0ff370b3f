"""The official layouts of data sets: folders of videos, and lists of their classes and splits."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from hdc_keras.config import DataConfig
from hdc_keras.data.finegym import detect_finegym, read_gym99, read_gym288
from hdc_keras.data.folders import VideosBelow
from hdc_keras.data.hugging_face import is_hugging_face, read_hugging_face
from hdc_keras.data.members import member_of
from hdc_keras.data.motion_datasets import (
    is_diving48,
    is_jester,
    is_something_something_v2,
    read_diving48,
    read_jester,
    read_something_something_v2,
)
from hdc_keras.data.official_lists import (
    Problems,
    SetFiles,
    folder_with,
    lines_of,
    require_lists,
    with_lists,
    without_lists,
)
from hdc_keras.data.records import (
    MANIFEST_SUFFIXES,
    VideoRecord,
    VideoSet,
    counted,
    label_name_problem,
    read_videos,
)
from hdc_keras.data.remote import is_remote
from hdc_keras.data.shards import is_prepared, read_prepared
from hdc_keras.data.tables import Table, read_table, shown
from hdc_keras.data.webdataset import is_list_of_tars, is_webdataset, read_webdataset
from hdc_keras.errors import DataError

# v_{action}_g{group}_c{clip}. The action is spelled as in the lists, which may differ from the folder's name.
_UCF_NAME = re.compile(r"v_\w+_(?P<group>g\d\d)_c\d\d", re.IGNORECASE)
_UCF_LISTS = {"train": "trainlist{:02d}.txt", "test": "testlist{:02d}.txt"}
# {title}_{action}_{visible body part}_{camera motion}_np{people}_{viewpoint}_{quality}_{number}
_HMDB_CODES = re.compile(r"_[fhlu]_(cm|nm)_np\d+_(fr|ba|le|ri)_(goo|med|bad)_\d+$", re.IGNORECASE)
_HMDB_LIST = re.compile(r"(?P<label>.+)_test_split(?P<number>\d)\.txt")
_HMDB_SPLITS = {"0": None, "1": "train", "2": "test"}
_KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
# Results on Kinetics are reported on its validation set, because the test set was released without labels.
_KINETICS_SPLITS = {"train": "train", "val": "test", "validate": "test", "validation": "test", "test": None}
_KINETICS_NAME = re.compile(r"[\w-]{11}(_\d{6}_\d{6})?")
# Number of video names that are checked to detect a layout.
_NAMES_CHECKED = 20


def read_local_dataset(data: DataConfig) -> VideoSet:
    """Like `read_dataset`, but only for videos that can be read directly: local or prepared ones.

    Raises:
        DataError: as in `read_dataset`, or a video is remote and not prepared.
    """
    videos = read_dataset(data)
    remote = next((record.path for record in videos.records if not record.stored and is_remote(record.path)), None)
    if remote:
        raise DataError(
            f"{remote}: remote videos must be prepared first. Run hdc-keras prepare --data {data.path} --out FOLDER, "
            "then use --data FOLDER."
        )
    return videos


def read_dataset(data: DataConfig) -> VideoSet:
    """Read the videos at `data.path`, in the layout `data.layout`; "auto" detects the layout.

    Raises:
        DataError: the path does not exist, official lists are missing or malformed, or none of the listed videos
            exists. One error reports all problems.
    """
    assert data.path is not None
    folder = data.path.rstrip("/")
    if is_prepared(folder):
        records, failed = read_prepared(folder)
        for name in {name for record in records for name in record.labels}:
            if problem := label_name_problem(name):
                raise DataError(f"{folder}: {problem}.")
        notes = [f"prepared set: {folder}, {counted(records, 'video')}"]
        if failed:
            share = f"{len(failed)} of {len(records) + len(failed)} videos could not be prepared"
            notes.append(f"{share}; {folder}/report.json lists the reasons")
        return VideoSet(records, notes)
    if is_remote(data.path) or member_of(data.path):
        return read_videos(data.path)
    path = Path(data.path)
    annotations = Path(data.annotations) if data.annotations else None
    if annotations and not annotations.exists():
        raise DataError(f"{annotations}: no such file or folder (data.annotations).")
    layout = _detect(path, annotations) if data.layout == "auto" else data.layout
    if layout == "plain":
        return read_videos(path)
    if layout in _IN_FILES:
        return _IN_FILES[layout](path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. The layout {layout} needs the folder that contains the videos.")
    if layout in _WITHOUT_NUMBERED_SPLITS:
        return _WITHOUT_NUMBERED_SPLITS[layout](path, annotations)
    return {"ucf101": read_ucf101, "hmdb51": read_hmdb51}[layout](path, annotations, data.official_split)


def read_ucf101(folder: Path, annotations: Path | None = None, split: int = 1) -> VideoSet:
    """Read UCF101 (Soomro et al. 2012): videos `{Class}/v_{Class}_gXX_cYY.avi` and the official lists.

    The lists are `trainlist0N.txt`, `testlist0N.txt` and, optionally, `classInd.txt`.
    Clips with the same `gXX` are cuts of one recording and share a group. Names are matched regardless of case and
    suffix: releases spell `HandStandPushups` in two ways, and re-encoded copies end in `.mp4`.

    Args:
        folder: contains the class folders, directly or one level further down.
        annotations: contains the lists; searched for in and next to `folder` when `None`.
        split: official split, 1 to 3.
    """
    files = SetFiles(folder, by_folder=False)
    lists = folder_with(_UCF_LISTS["train"].format(split), folder, annotations)
    if lists is None:
        require_lists(annotations, _UCF_LISTS["train"].format(split))
        records = [_ucf_record(path, path.parent.name, None) for path in files.paths if _UCF_NAME.fullmatch(path.stem)]
        return without_lists("UCF101", records, files, _UCF_LISTS["train"].format(split))
    problems = Problems()
    labels = _ucf_classes(lists / "classInd.txt", problems)
    records = []
    for name, pattern in _UCF_LISTS.items():
        for number, line in lines_of(lists / pattern.format(split), problems):
            listed = line.split()[0]  # In training lists, the number of the class follows.
            directory, _, file_name = listed.replace("\\", "/").rpartition("/")
            stem = Path(file_name).stem
            label = labels.get(directory.casefold()) if labels else directory
            if not _UCF_NAME.fullmatch(stem) or label is None:
                expected = "a class from classInd.txt" if label is None else "CLASS/v_CLASS_gXX_cYY.avi"
                problems.add(lists / pattern.format(split), number, f"expected {expected}. Received: {line}")
            elif path := files.find(directory, stem):
                records.append(_ucf_record(path, label, name))
    problems.raise_any()
    return with_lists("UCF101", f"official split {split}", [lists], records, files, [])


def _ucf_record(path: Path, label: str, split: str | None) -> VideoRecord:
    match = _UCF_NAME.fullmatch(path.stem)
    assert match
    return VideoRecord(str(path), f"{label}/{path.name}", {"label": label}, split, f"{label}_{match['group'].lower()}")


def _ucf_classes(path: Path, problems: "Problems") -> dict[str, str]:
    """Class names by lower-case name; empty if there is no list of classes."""
    labels = {}
    for number, line in lines_of(path, problems) if path.exists() else ():
        index, _, label = line.partition(" ")
        if not index.isdigit() or not label:
            problems.add(path, number, f"expected NUMBER CLASS. Received: {line}")
        labels[label.strip().casefold()] = label.strip()
    return labels


def read_hmdb51(folder: Path, annotations: Path | None = None, split: int = 1) -> VideoSet:
    """Read HMDB51 (Kuehne et al. 2011): videos `{class}/*.avi` and the official lists `{class}_test_splitN.txt`.

    A list marks each clip as 0 (unused), 1 (train) or 2 (test).
    A clip's name begins with the title of its source; clips of one source share a group. Unused clips are left out.
    Only letters and digits of names are compared, because copies of the set replace spaces, `#`, `;`, `&` and brackets
    in different ways.

    Args:
        folder: contains the class folders.
        annotations: contains the lists; searched for in and next to `folder` when `None`.
        split: official split, 1 to 3.
    """
    files = SetFiles(folder, by_folder=True)
    lists = folder_with(f"*_test_split{split}.txt", folder, annotations)
    if lists is None:
        require_lists(annotations, f"CLASS_test_split{split}.txt")
        records = [_hmdb_record(path, path.parent.name, None) for path in files.paths]
        return without_lists("HMDB51", records, files, f"CLASS_test_split{split}.txt")
    problems = Problems()
    records, unused = [], 0
    for file in sorted(lists.glob(f"*_test_split{split}.txt")):
        match = _HMDB_LIST.fullmatch(file.name)
        assert match
        for number, line in lines_of(file, problems):
            name, _, code = line.rpartition(" ")
            if code not in _HMDB_SPLITS or not name:
                problems.add(file, number, f"expected NAME.avi and 0, 1 or 2. Received: {line}")
                continue
            path = files.find(match["label"], Path(name.strip()).stem)
            unused += bool(path and code == "0")
            if path and code != "0":
                records.append(_hmdb_record(path, match["label"], _HMDB_SPLITS[code]))
    problems.raise_any()
    notes = [f"clips left out because official split {split} does not use them: {unused}"] if unused else []
    return with_lists("HMDB51", f"official split {split}", [lists], records, files, notes)


def _hmdb_record(path: Path, label: str, split: str | None) -> VideoRecord:
    title = _HMDB_CODES.sub("", path.stem)
    title = title[: -len(label) - 1] if title.casefold().endswith(f"_{label}".casefold()) else title
    # The official lists keep the clips of a source together only within a class, so the group includes the class.
    return VideoRecord(str(path), f"{label}/{path.name}", {"label": label}, split, f"{label}/{title}")


def read_kinetics(folder: Path, annotations: Path | None = None) -> VideoSet:
    """Read Kinetics-400, -600 or -700 (Kay et al. 2017): clips, and the official lists in CSV files.

    The lists have the columns `youtube_id`, `time_start` and `time_end`. Clips are named
    `{youtube_id}_{start:06d}_{end:06d}` or `{youtube_id}`. Many have been removed from YouTube; a note says how many of
    the listed clips are missing. Clips of one YouTube video share a group.

    Args:
        folder: contains the clips, in any arrangement of folders.
        annotations: a CSV list or a folder of them; searched for in and next to `folder` when `None`.
    """
    lists = _kinetics_lists(folder, annotations)
    if not lists:
        raise DataError(
            f"{annotations or folder}: no Kinetics list found. Expected CSV files with the columns "
            f"{', '.join(_KINETICS_COLUMNS)}, and `label`. Set data.annotations to their folder, or data.layout=plain "
            "to read class folders without lists."
        )
    files = SetFiles(folder, by_folder=False, exact=True)
    problems = Problems()
    records, left_out = [], 0
    for file in lists:
        for line, row, problem in _kinetics_table(file).rows:
            if problem:
                problems.add(file, line, problem)
                continue
            try:
                start, end = (int(float(row[column])) for column in _KINETICS_COLUMNS[1:])
            except (ValueError, OverflowError):
                problems.add(file, line, "expected numbers of seconds in time_start and time_end")
                continue
            official = (row.get("split") or file.stem.split("_")[-1]).lower()
            if official not in _KINETICS_SPLITS:
                problems.add(file, line, f"expected a split of train, val or test. Received: {shown(official)}")
                continue
            youtube_id, label, split = row["youtube_id"], row.get("label"), _KINETICS_SPLITS[official]
            path = files.find("", f"{youtube_id}_{start:06d}_{end:06d}", youtube_id)
            left_out += bool(path and split is None)
            if path and split:
                labels = {"label": label} if label else {}
                records.append(VideoRecord(str(path), path.stem, labels, split, youtube_id))
    problems.raise_any()
    notes = ["the official validation set serves as the test set, as is usual for Kinetics"]
    notes += [f"clips left out because they belong to the official test set: {left_out}"] if left_out else []
    return with_lists("Kinetics", "official lists", lists, records, files, notes)


def _kinetics_lists(folder: Path, annotations: Path | None) -> list[Path]:
    places = (
        [annotations] if annotations else [folder, folder / "annotations", folder.parent / "annotations", folder.parent]
    )
    for place in places:
        found = [place] if place.is_file() else sorted(place.glob("*.csv"))
        found = [file for file in found if _is_kinetics_list(file)]
        if found:
            return found
    return []


def _is_kinetics_list(file: Path) -> bool:
    try:
        return set(_KINETICS_COLUMNS) <= set(_kinetics_table(file).columns)
    except DataError:  # another file
        return False


def _kinetics_table(file: Path) -> Table:
    return read_table(file, _KINETICS_COLUMNS[0], {*_KINETICS_COLUMNS, "label", "split"}.__contains__)


def _detect(path: Path, annotations: Path | None) -> str:
    """Detect the layout from the names of some videos; for Kinetics, the CSV lists must exist too."""
    found = VideosBelow(path)
    names = [video.stem for video in islice(map(Path, found), _NAMES_CHECKED)] if path.is_dir() else []
    if not names:
        return _detect_without_videos(path, annotations, found.ignored if path.is_dir() else [path.name])
    if all(_UCF_NAME.fullmatch(name) for name in names):
        return "ucf101"
    if all(_HMDB_CODES.search(name) for name in names):
        return "hmdb51"
    if all(_KINETICS_NAME.fullmatch(name) for name in names) and _kinetics_lists(path, annotations):
        return "kinetics"
    if layout := detect_finegym(names, path, annotations):
        return layout
    if is_something_something_v2(names, path, annotations):
        return "something-something-v2"
    if is_diving48(names, path, annotations):
        return "diving48"
    return "plain"


def _detect_without_videos(path: Path, annotations: Path | None, files: Sequence[str]) -> str:
    """Detect the layout of a file, or of a folder that contains no video files, from the names of other files."""
    if not path.exists() or any((path / f"manifest{suffix}").exists() for suffix in MANIFEST_SUFFIXES):
        return "plain"
    if path.is_dir() and is_jester(path, annotations):
        return "jester"
    if is_webdataset(files) or (path.is_file() and is_list_of_tars(path)):
        return "webdataset"
    return "huggingface" if is_hugging_face(path if path.is_dir() else path.parent, files) else "plain"


# Sets whose videos lie in other files.
_IN_FILES = {"webdataset": read_webdataset, "huggingface": read_hugging_face}
# Sets whose lists have one division into splits.
_WITHOUT_NUMBERED_SPLITS = {
    "kinetics": read_kinetics,
    "something-something-v2": read_something_something_v2,
    "diving48": read_diving48,
    "jester": read_jester,
    "gym99": read_gym99,
    "gym288": read_gym288,
}
