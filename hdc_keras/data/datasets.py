"""The official layouts of UCF101, HMDB51 and Kinetics: videos in folders, and the lists that say which is which."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from hdc_keras.config import DataConfig
from hdc_keras.data.records import VIDEO_SUFFIXES, VideoRecord, read_records
from hdc_keras.data.remote import is_remote
from hdc_keras.data.shards import is_prepared, read_prepared
from hdc_keras.errors import DataError

# v_{action}_g{group}_c{clip}; the action is spelled as in the lists, not always as its folder.
_UCF_NAME = re.compile(r"v_\w+_(?P<group>g\d\d)_c\d\d", re.IGNORECASE)
_UCF_LISTS = {"train": "trainlist{:02d}.txt", "test": "testlist{:02d}.txt"}
# {title}_{action}_{visible body}_{camera}_np{people}_{viewpoint}_{quality}_{number}
_HMDB_CODES = re.compile(r"_[fhlu]_(cm|nm)_np\d+_(fr|ba|le|ri)_(goo|med|bad)_\d+$", re.IGNORECASE)
_HMDB_LIST = re.compile(r"(?P<label>.+)_test_split(?P<number>\d)\.txt")
_HMDB_SPLITS = {"0": None, "1": "train", "2": "test"}
_KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
# Results on Kinetics are results on its validation set; its test set came without labels.
_KINETICS_SPLITS = {"train": "train", "val": "test", "validate": "test", "validation": "test", "test": None}
_KINETICS_NAME = re.compile(r"[\w-]{11}(_\d{6}_\d{6})?")
_NAMES_SHOWN = 3
# How many videos' names tell a layout.
_NAMES_LOOKED_AT = 20
_PROBLEMS_SHOWN = 20


class VideoSet(NamedTuple):
    """Videos, and what a user should know of how they were found: a sentence each."""

    records: list[VideoRecord]
    notes: list[str]


def read_local_dataset(data: DataConfig) -> VideoSet:
    """As `read_dataset`, for videos that are read at once, so that remote ones are refused.

    Raises:
        DataError: also when a video is remote and not prepared.
    """
    videos = read_dataset(data)
    remote = next((record.path for record in videos.records if not record.stored and is_remote(record.path)), None)
    if remote:
        raise DataError(
            f"{remote}: remote videos are prepared before they are read: hdc-keras prepare --data {data.path} "
            "--out FOLDER, and then give --data FOLDER."
        )
    return videos


def read_dataset(data: DataConfig) -> VideoSet:
    """Read the set at `data.path`, in the layout that `data.layout` names or that is found there.

    Raises:
        DataError: nothing is there, the lists are missing or wrong, or no listed video is there; all at once.
    """
    assert data.path is not None
    folder = data.path.rstrip("/")
    if is_prepared(folder):
        records, failed = read_prepared(folder)
        share = f"{len(failed)} of {len(records) + len(failed)} videos could not be prepared"
        return VideoSet(records, [f"{share}; report.json there says why"] if failed else [])
    if is_remote(data.path):
        return VideoSet(read_records(data.path), [])
    path = Path(data.path)
    annotations = Path(data.annotations) if data.annotations else None
    if annotations and not annotations.exists():
        raise DataError(f"{annotations}: no such file or folder (data.annotations).")
    layout = _detect(path, annotations) if data.layout == "auto" else data.layout
    if layout == "plain":
        return VideoSet(read_records(path), [])
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. The layout {layout} is read from the folder that holds the videos.")
    if layout == "kinetics":
        return read_kinetics(path, annotations)
    return {"ucf101": read_ucf101, "hmdb51": read_hmdb51}[layout](path, annotations, data.official_split)


def read_ucf101(folder: Path, annotations: Path | None = None, split: int = 1) -> VideoSet:
    """UCF101 (Soomro et al. 2012): `{Class}/v_{Class}_gXX_cYY.avi`; `trainlist0N.txt`, `testlist0N.txt`, `classInd.txt`

    Clips of one `gXX` are cuts of one recording; they share a group. Names are matched without regard to case and
    suffix: releases disagree on `HandStandPushups` and `HandstandPushups`, and re-encoded copies end in `.mp4`.

    Args:
        folder: holds the class folders, or a folder that does.
        annotations: holds the lists; looked for in and beside `folder` when `None`.
        split: official split, 1 to 3.
    """
    files = _Files(folder, by_folder=False)
    lists = _folder_with(_UCF_LISTS["train"].format(split), folder, annotations)
    if lists is None:
        _require_lists(annotations, _UCF_LISTS["train"].format(split))
        records = [_ucf_record(path, path.parent.name, None) for path in files.paths if _UCF_NAME.fullmatch(path.stem)]
        return VideoSet(records, [_no_lists(_UCF_LISTS["train"].format(split)), *files.notes()])
    problems = _Problems()
    labels = _ucf_classes(lists / "classInd.txt", problems)
    records = []
    for name, pattern in _UCF_LISTS.items():
        for number, line in _lines(lists / pattern.format(split), problems):
            listed = line.split()[0]  # lists for training say the class' number too
            directory, _, file_name = listed.replace("\\", "/").rpartition("/")
            stem = Path(file_name).stem
            label = labels.get(directory.casefold()) if labels else directory
            if not _UCF_NAME.fullmatch(stem) or label is None:
                expected = "a class of classInd.txt" if label is None else "CLASS/v_CLASS_gXX_cYY.avi"
                problems.add(lists / pattern.format(split), number, f"expected {expected}. Received: {line}")
            elif path := files.find(directory, stem):
                records.append(_ucf_record(path, label, name))
    problems.raise_any()
    return VideoSet(_found(records, folder, "UCF101"), files.notes())


def _ucf_record(path: Path, label: str, split: str | None) -> VideoRecord:
    match = _UCF_NAME.fullmatch(path.stem)
    assert match
    return VideoRecord(str(path), f"{label}/{path.name}", {"label": label}, split, f"{label}_{match['group'].lower()}")


def _ucf_classes(path: Path, problems: "_Problems") -> dict[str, str]:
    """Class name by its name in lower case; empty where there is no list of classes."""
    labels = {}
    for number, line in _lines(path, problems) if path.exists() else ():
        index, _, label = line.partition(" ")
        if not index.isdigit() or not label:
            problems.add(path, number, f"expected NUMBER CLASS. Received: {line}")
        labels[label.strip().casefold()] = label.strip()
    return labels


def read_hmdb51(folder: Path, annotations: Path | None = None, split: int = 1) -> VideoSet:
    """HMDB51 (Kuehne et al. 2011): `{class}/*.avi`; `{class}_test_splitN.txt` with 0 (unused), 1 (train) or 2 (test).

    Clips cut from one source, which their names begin with, share a group. Unused clips are left out. Names are matched
    by their letters and digits alone: copies differ in what stands for spaces, `#`, `;`, `&` and brackets.

    Args:
        folder: holds the class folders.
        annotations: holds the lists; looked for in and beside `folder` when `None`.
        split: official split, 1 to 3.
    """
    files = _Files(folder, by_folder=True)
    lists = _folder_with(f"*_test_split{split}.txt", folder, annotations)
    if lists is None:
        _require_lists(annotations, f"CLASS_test_split{split}.txt")
        records = [_hmdb_record(path, path.parent.name, None) for path in files.paths]
        return VideoSet(records, [_no_lists(f"CLASS_test_split{split}.txt"), *files.notes()])
    problems = _Problems()
    records, unused = [], 0
    for file in sorted(lists.glob(f"*_test_split{split}.txt")):
        match = _HMDB_LIST.fullmatch(file.name)
        assert match
        for number, line in _lines(file, problems):
            name, _, code = line.rpartition(" ")
            if code not in _HMDB_SPLITS or not name:
                problems.add(file, number, f"expected NAME.avi and 0, 1 or 2. Received: {line}")
                continue
            path = files.find(match["label"], Path(name.strip()).stem)
            unused += bool(path and code == "0")
            if path and code != "0":
                records.append(_hmdb_record(path, match["label"], _HMDB_SPLITS[code]))
    problems.raise_any()
    notes = [f"{unused} clips that official split {split} does not use are left out"] if unused else []
    return VideoSet(_found(records, folder, "HMDB51"), [*notes, *files.notes()])


def _hmdb_record(path: Path, label: str, split: str | None) -> VideoRecord:
    title = _HMDB_CODES.sub("", path.stem)
    title = title[: -len(label) - 1] if title.casefold().endswith(f"_{label}".casefold()) else title
    # Official lists keep the clips of a source apart within a class; a source may serve several classes.
    return VideoRecord(str(path), f"{label}/{path.name}", {"label": label}, split, f"{label}/{title}")


def read_kinetics(folder: Path, annotations: Path | None = None) -> VideoSet:
    """Kinetics-400, -600, -700 (Kay et al. 2017): CSV lists with `youtube_id`, `time_start`, `time_end`, and clips.

    Clips are named `{youtube_id}_{start:06d}_{end:06d}` or `{youtube_id}`, in any folder below. Many have gone from
    YouTube: those that are not there are counted. Clips of one YouTube video share a group.

    Args:
        folder: holds the clips, in any arrangement of folders.
        annotations: a CSV list or a folder of them; looked for in and beside `folder` when `None`.
    """
    lists = _kinetics_lists(folder, annotations)
    if not lists:
        raise DataError(
            f"{annotations or folder}: no Kinetics list found. Expected CSV files with the columns "
            f"{', '.join(_KINETICS_COLUMNS)}, and `label`. Name them with data.annotations, or read the folder as one "
            "of classes with data.layout=plain."
        )
    files = _Files(folder, by_folder=False, exact=True)
    problems = _Problems()
    records, left_out = [], 0
    for file in lists:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            for row in reader:
                try:
                    start, end = (int(float(row[column])) for column in _KINETICS_COLUMNS[1:])
                except (TypeError, ValueError):
                    problems.add(file, reader.line_num, "expected numbers of seconds in time_start and time_end")
                    continue
                official = (row.get("split") or file.stem.split("_")[-1]).strip().lower()
                if official not in _KINETICS_SPLITS:
                    problems.add(file, reader.line_num, f"expected a split of train, val or test. Received: {official}")
                    continue
                youtube_id, label, split = row["youtube_id"], row.get("label"), _KINETICS_SPLITS[official]
                path = files.find("", f"{youtube_id}_{start:06d}_{end:06d}", youtube_id)
                left_out += bool(path and split is None)
                if path and split:
                    labels = {"label": label} if label else {}
                    records.append(VideoRecord(str(path), path.stem, labels, split, youtube_id))
    problems.raise_any()
    notes = ["the official validation set is the test set here, as is usual"]
    notes += [f"{left_out} clips of the official test set are left out"] if left_out else []
    return VideoSet(_found(records, folder, "Kinetics"), [*notes, *files.notes()])


def _kinetics_lists(folder: Path, annotations: Path | None) -> list[Path]:
    places = (
        [annotations] if annotations else [folder, folder / "annotations", folder.parent / "annotations", folder.parent]
    )
    for place in places:
        found = [place] if place.is_file() else sorted(place.glob("*.csv"))
        found = [file for file in found if set(_KINETICS_COLUMNS) <= set(_header(file))]
        if found:
            return found
    return []


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return next(csv.reader(file), [])


def _detect(path: Path, annotations: Path | None) -> str:
    """The layout that the names of some videos speak for; Kinetics' also need their lists."""
    names = [video.stem for video in islice(_videos(path), _NAMES_LOOKED_AT)] if path.is_dir() else []
    if not names:
        return "plain"
    if all(_UCF_NAME.fullmatch(name) for name in names):
        return "ucf101"
    if all(_HMDB_CODES.search(name) for name in names):
        return "hmdb51"
    if all(_KINETICS_NAME.fullmatch(name) for name in names) and _kinetics_lists(path, annotations):
        return "kinetics"
    return "plain"


def _folder_with(pattern: str, folder: Path, annotations: Path | None) -> Path | None:
    """Where the lists are: the folder named, or else in or beside the videos."""
    beside = [folder, *_subfolders(folder), folder.parent, *_subfolders(folder.parent)]
    places = [annotations, *_subfolders(annotations)] if annotations else beside
    return next((place for place in places if next(place.glob(pattern), None)), None)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _videos(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)


def _require_lists(annotations: Path | None, expected: str) -> None:
    if annotations:
        raise DataError(f"{annotations}: no official lists there. Expected {expected}.")


def _no_lists(expected: str) -> str:
    return (
        f"no official lists were found in or beside the videos ({expected}), so held-out videos are drawn by group; "
        "data.annotations names their folder"
    )


def _lines(path: Path, problems: "_Problems") -> Iterator[tuple[int, str]]:
    """Numbered lines that are not empty."""
    if not path.exists():
        problems.add(path, None, "no such file")
        return
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _found(records: list[VideoRecord], folder: Path, name: str) -> list[VideoRecord]:
    if not records:
        raise DataError(f"{folder}: holds none of the videos that the lists of {name} name.")
    return records


class _Problems:
    """What is wrong with the lists, told all at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, path: Path, number: int | None, problem: str) -> None:
        self.lines.append(f"{path}{'' if number is None else f', line {number}'}: {problem}")

    def raise_any(self) -> None:
        if self.lines:
            more = f"\n  and {len(self.lines) - _PROBLEMS_SHOWN} more" if len(self.lines) > _PROBLEMS_SHOWN else ""
            shown = "\n  ".join(self.lines[:_PROBLEMS_SHOWN])
            raise DataError(f"{len(self.lines)} problem(s) in the official lists:\n  {shown}{more}")


class _Files:
    """The videos below a folder, found by name, whatever their suffix.

    Args:
        folder: searched through.
        by_folder: whether the folder is part of a video's name.
        exact: whether case matters, and the signs between letters and digits, as they do in YouTube's ids.
    """

    def __init__(self, folder: Path, by_folder: bool, exact: bool = False):
        self.paths = sorted(_videos(folder))
        self.by_folder = by_folder
        self.exact = exact
        self.by_key: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self.by_key[self._key(path.parent.name, path.stem)].append(path)
        self.missing: list[str] = []
        self.respelled: list[str] = []
        self.used: set[Path] = set()

    def find(self, folder: str, *stems: str) -> Path | None:
        """The video of the first of these names that is there; what is missing, or spelled otherwise, is noted."""
        for stem in stems:
            candidates = [path for path in self.by_key.get(self._key(folder, stem), ()) if path not in self.used]
            alike = [path for path in candidates if path.stem == stem]
            if candidates:
                path = (alike or candidates)[0]
                self.used.add(path)
                if path.stem != stem or (folder and path.parent.name != folder):
                    self.respelled.append(f"{folder}/{stem}" if folder else stem)
                return path
        self.missing.append(f"{folder}/{stems[0]}" if folder else stems[0])
        return None

    def notes(self) -> list[str]:
        """What a user should know: missing, respelled and unlisted videos."""
        notes = []
        if self.missing:
            notes.append(f"{len(self.missing)} listed videos are not there ({_some(self.missing)})")
        if self.respelled:
            notes.append(
                f"{len(self.respelled)} videos are spelled otherwise than in the lists ({_some(self.respelled)})"
            )
        unlisted = [path.name for path in self.paths if path not in self.used]
        if self.used and unlisted:
            notes.append(f"{len(unlisted)} videos are in no list and are left out ({_some(unlisted)})")
        return notes

    def _key(self, folder: str, stem: str) -> str:
        name = f"{folder}/{stem}" if self.by_folder else stem
        return name if self.exact else re.sub(r"[^0-9a-z/]+", "_", name.casefold())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
