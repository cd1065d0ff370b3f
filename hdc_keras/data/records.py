"""Video records: read from class folders, plain folders and manifests, and divided into splits by group."""

import csv
import difflib
import heapq
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hdc_keras.data.remote import is_remote, list_files
from hdc_keras.data.sampling import random_generator
from hdc_keras.errors import DataError, did_you_mean

VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".h264",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".webm",
        ".wmv",
    ]
)
MANIFEST_SUFFIXES = (".csv", ".jsonl")
SPLITS = ("train", "val", "test")
# The split of a folder of that name, in lower case.
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LABEL_PREFIX = "label_"
_ERRORS_SHOWN = 20
_LINKS_SHOWN = 3


@dataclass(frozen=True)
class StoredVideo:
    """Location of a prepared video's frames: one record of a TFRecord shard.

    Attributes:
        shard: path of the shard.
        offset: first byte of the record.
        size: number of bytes of the record, including its length and checksums.
        frames: number of frames.
        rate: frames per second; 0 if unknown.
    """

    shard: str
    offset: int
    size: int
    frames: int
    rate: float


@dataclass(frozen=True)
class VideoRecord:
    """One video: its location and what is known about it.

    Attributes:
        path: path or URL of the file.
        video_id: unique within the set. Sampling depends on it and not on `path`, so moving a set does not change its
            clips.
        labels: class name by label column; empty if unlabelled. The first entry is the main label.
        split: "train", "val" or "test"; `None` if the set has no splits.
        group: near-duplicates (cuts of one recording) share a group; splits never divide a group.
        stored: location of the frames in a prepared set; `None` if they are decoded from the file.
    """

    path: str
    video_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    stored: StoredVideo | None = None

    @property
    def label(self) -> str | None:
        """The main label, or `None`."""
        return next(iter(self.labels.values()), None)


class VideoSet(NamedTuple):
    """Videos, and notes for the user on how they were found, one sentence each."""

    records: list[VideoRecord]
    notes: list[str]


def read_records(path: str | Path) -> list[VideoRecord]:
    """The videos of `read_videos`, without its notes."""
    return read_videos(path).records


def read_videos(path: str | Path) -> VideoSet:
    """Read a set of videos.

    Args:
        path: a CSV or JSONL manifest; a folder that contains one (`manifest.csv`, `manifest.jsonl`, or a single CSV
            with a `path` column); a folder of classes, one sub-folder each; a folder of videos without labels; or a
            folder with such a folder for each split (`train`, `val`, `valid`, `validation`, `test`). A folder may be
            a URL.

    Raises:
        DataError: `path` does not exist, or its content is not valid; the message lists every problem.
    """
    if is_remote(str(path)):
        return _from_names(str(path), list_files(str(path)), f"{str(path).rstrip('/')}/")
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder. Expected a folder of videos or a CSV manifest.{_did_you_mean(path)}"
        )
    if path.is_file():
        if path.suffix.lower() not in MANIFEST_SUFFIXES:
            raise DataError(
                f"{path}: expected a folder of videos or a manifest (*.csv, *.jsonl). To use single videos, list them "
                "in a CSV with a `path` column."
            )
        return VideoSet(read_manifest(path), [])
    manifest = _find_manifest(path)
    return VideoSet(read_manifest(manifest), []) if manifest else read_folder(path)


def read_manifest(path: Path) -> list[VideoRecord]:
    """Read a CSV manifest with a header, or a JSONL manifest with one object per line.

    Columns or keys: `path` (absolute, or relative to the manifest; required), `label` or several `label_NAME`, `split`
    (train, val, test), `group`, `video_id`. Other columns are ignored.

    Raises:
        DataError: the manifest is not valid; the message lists every bad line with its number.
    """
    records: list[VideoRecord] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    columns, rows = (_jsonl_rows if path.suffix.lower() == ".jsonl" else _csv_rows)(path)
    label_columns = {c: "label" for c in columns if c == "label"} or {
        c: c.removeprefix(_LABEL_PREFIX) for c in columns if c.startswith(_LABEL_PREFIX)
    }
    for line, row in rows:
        problem, record = (row, None) if isinstance(row, str) else _read_row(row, path.parent, label_columns)
        if record is None:
            problems.append(f"line {line}: {problem}")
            continue
        if record.video_id in seen:
            problems.append(f"line {line}: `{record.video_id}` is already listed on line {seen[record.video_id]}")
        seen.setdefault(record.video_id, line)
        records.append(record)
    divided = _divided_groups(records)
    problems += [f"group `{group}` is in several splits ({', '.join(splits)})" for group, splits in divided]
    if any(r.split for r in records) and not all(r.split for r in records):
        problems.append("some rows have a split and others do not; give every row a split, or none")
    if problems:
        shown = "\n  ".join(problems[:_ERRORS_SHOWN])
        more = f"\n  and {len(problems) - _ERRORS_SHOWN} more" if len(problems) > _ERRORS_SHOWN else ""
        raise DataError(f"{path}: {len(problems)} problem(s):\n  {shown}{more}")
    if not records:
        raise DataError(f"{path}: lists no videos. Expected one line per video{_below_header(path)}.")
    return records


def _below_header(path: Path) -> str:
    return "" if path.suffix.lower() == ".jsonl" else " below the header"


# (line number, content) of each line. For a line that cannot be read, the content is a description of the problem.
_Rows = Iterable[tuple[int, Mapping[str, str] | str]]


def _csv_rows(path: Path) -> tuple[Sequence[str], _Rows]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        columns = next(csv.reader(file), [])
    if "path" not in columns:
        raise DataError(
            f"{path}, line 1: expected a header with a `path` column. Received: {', '.join(columns) or 'nothing'}"
        )

    def rows() -> _Rows:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="")
            try:
                for row in reader:
                    yield reader.line_num, row
            except (csv.Error, UnicodeDecodeError) as error:
                yield reader.line_num + 1, f"not readable as UTF-8 CSV ({error})"

    return columns, rows()


def _jsonl_rows(path: Path) -> tuple[Sequence[str], _Rows]:
    rows: list[tuple[int, Mapping[str, str] | str]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            rows.append((number, f"not readable as JSON ({error})"))
            continue
        if not isinstance(row, dict) or "path" not in row:
            rows.append((number, f"expected an object with a `path`. Received: {line.decode()[:80]}"))
            continue
        columns.update(dict.fromkeys(row))
        rows.append((number, {key: "" if value is None else str(value) for key, value in row.items()}))
    # A key that is missing from a line has an empty value.
    return list(columns), [
        (n, row if isinstance(row, str) else {c: "" for c in columns} | dict(row)) for n, row in rows
    ]


def read_folder(folder: Path) -> VideoSet:
    """Read a folder without a manifest.

    It has one sub-folder per class (searched recursively), or videos without labels. Both may be in split folders.
    """
    found = VideosBelow(folder)
    records, notes = _from_names(str(folder), found, f"{folder}/")
    return VideoSet(records, [*notes, *found.notes()])


class VideosBelow:
    """The names of the videos in a folder and its sub-folders, relative to it, in no particular order.

    Links to folders are followed, after all other folders. Each folder is read once, so a link to a folder that was
    read already, or that contains the link, is left out.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.left_out: list[str] = []

    def __iter__(self) -> Iterator[str]:
        self.left_out = []
        read: set[str] = set()
        folders, links = [""], list[str]()
        while folders or links:
            is_link = not folders
            name = heapq.heappop(links) if is_link else folders.pop()
            place = os.path.realpath(self.folder / name)
            if place in read or (is_link and self._contains(place, name)):
                self.left_out.append(name)
                continue
            read.add(place)
            for entry in _entries(place):
                below = f"{name}/{entry.name}" if name else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(below)
                elif entry.is_symlink() and Path(entry.path).is_dir():
                    heapq.heappush(links, below)
                elif PurePosixPath(below).suffix.lower() in VIDEO_SUFFIXES:
                    yield below

    def notes(self) -> list[str]:
        """A note for the user on the links that were left out."""
        if not self.left_out:
            return []
        names = ", ".join(self.left_out[:_LINKS_SHOWN]) + (", ..." if len(self.left_out) > _LINKS_SHOWN else "")
        count = len(self.left_out)
        return [f"links left out because their folder was read already, or contains the link: {count} ({names})"]

    def _contains(self, place: str, link: str) -> bool:
        """Whether a link is below the folder to which it leads."""
        return Path(os.path.realpath((self.folder / link).parent)).is_relative_to(place)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError:  # such as lost+found at the top of a disk
        return []


def _from_names(folder: str, files: Iterable[str], prefix: str) -> VideoSet:
    names = sorted(name for name in files if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES)
    if not names:
        raise DataError(
            f"{folder}: contains no videos. Expected files ending in {', '.join(sorted(VIDEO_SUFFIXES))}, directly or "
            "in one sub-folder per class."
        )
    splits, notes = splits_of_folders(names)
    records = []
    for top in splits or [""]:
        inside = [name.removeprefix(top) for name in names if name.startswith(top)]
        loose = [name for name in inside if "/" not in name]
        if loose and len(loose) != len(inside):
            raise DataError(
                f"{folder}: some videos are in class folders and some are not (such as {top}{loose[0]}). Move them, "
                "or list them in a CSV manifest."
            )
        for name in inside:
            labels = {} if loose else {"label": name.partition("/")[0]}
            records.append(VideoRecord(f"{prefix}{top}{name}", f"{top}{name}", labels, splits.get(top)))
    return VideoSet(records, notes)


def splits_of_folders(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The split of each first-level folder (`train/`, ...), and a note; both empty unless all folders name splits."""
    counts = Counter("".join(name.partition("/")[:2]) for name in names)
    splits = {top: _SPLIT_FOLDERS.get(top.removesuffix("/").casefold(), "") for top in sorted(counts)}
    if not all(splits.values()) or not all(top.endswith("/") for top in splits):
        return {}, []
    note = "splits are taken from folders (number of videos): " + ", ".join(f"{top} ({counts[top]})" for top in splits)
    if "test" not in splits.values() and "val" in splits.values():
        alone = ", ".join(top for top, split in splits.items() if split == "val")
        note += f"; {alone} serves as the test split, because there is no folder test/"
        splits = {top: "test" if split == "val" else split for top, split in splits.items()}
    return splits, [note]


def with_splits(records: Sequence[VideoRecord], holdout: float, seed: int) -> list[VideoRecord]:
    """Give every record a split. A set that has splits keeps them.

    Otherwise, about `holdout` of each class of the main label becomes "test", in whole groups, and the rest "train". If
    any video is unlabelled or `holdout` is 0, every video becomes "train".

    Raises:
        DataError: a class has too few videos, or too few groups, to be in both splits.
    """
    if any(record.split for record in records):
        return list(records)
    if holdout == 0 or not all(record.label for record in records):
        return [replace(record, split="train") for record in records]
    members: dict[str, list[VideoRecord]] = defaultdict(list)
    for record in records:
        members[record.group or f"\x00{record.video_id}"].append(record)
    groups = sorted(members)
    random_generator("holdout", seed).shuffle(groups)
    totals = Counter(record.label for record in records)
    needed = {label: max(1, round(holdout * total)) for label, total in totals.items()}
    # Large groups come first, because they are the hardest to fit.
    groups.sort(key=lambda group: -len(members[group]))
    test: set[str] = set()
    for group in groups:
        counts = Counter(record.label for record in members[group])
        if all(count <= needed[label] for label, count in counts.items()):
            test.add(group)
            for label, count in counts.items():
                needed[label] -= count
    groups_of: dict[str | None, list[str]] = defaultdict(list)
    for group in groups:
        for label in {record.label for record in members[group]}:
            groups_of[label].append(group)
    # If no group of a class fits into its share of test videos, its smallest group is held out all the same, provided
    # that every class in that group keeps another group for training.
    for label in sorted(totals, key=str):
        if test.isdisjoint(groups_of[label]):
            smallest = min(groups_of[label], key=lambda group: len(members[group]))
            affected = {record.label for record in members[smallest]}
            if all(any(g not in test and g != smallest for g in groups_of[other]) for other in affected):
                test.add(smallest)
    split = [
        replace(record, split="test" if (record.group or f"\x00{record.video_id}") in test else "train")
        for record in records
    ]
    _require_both_sides(split)
    return split


def at_most_per_class(records: Sequence[VideoRecord], count: int, seed: int) -> list[VideoRecord]:
    """Draw at most `count` videos of each split and class of the main label at random. Their order is kept.

    The same seed draws the same videos, and a smaller `count` draws a subset of what a larger one draws.
    """
    drawn: Counter[tuple[str | None, str | None]] = Counter()
    kept = []
    for position in random_generator("at most per class", seed).permutation(len(records)):
        split_and_class = records[position].split, records[position].label
        drawn[split_and_class] += 1
        if drawn[split_and_class] <= count:
            kept.append(position)
    return [records[position] for position in sorted(kept)]


def _require_both_sides(records: Sequence[VideoRecord]) -> None:
    classes: dict[str, list[VideoRecord]] = defaultdict(list)
    for record in records:
        classes[str(record.label)].append(record)
    problems = []
    for label, of_class in sorted(classes.items()):
        if {record.split for record in of_class} != {"train", "test"}:
            groups = len({record.group or record.video_id for record in of_class})
            problems.append(f"class `{label}` has {len(of_class)} video(s) in {groups} group(s)")
    if problems:
        raise DataError(
            "cannot hold out test videos: every class needs at least one group for training and one for testing.\n  "
            + "\n  ".join(problems)
            + "\nAdd videos to these classes, or list the videos in a CSV manifest with a `split` column, or use all "
            "videos for pretraining with `--set data.holdout=0`."
        )


def _read_row(row: Mapping[str, str], folder: Path, label_columns: Mapping[str, str]) -> tuple[str, VideoRecord | None]:
    """Read one row of a manifest. Returns a problem and `None`, or an empty string and the record."""
    if row.get(""):
        return "more values than the header has columns", None
    if any(value is None for value in row.values()):
        return "fewer values than the header has columns", None
    if not row["path"]:
        return "`path` is empty", None
    # Strings are faster than `Path`, and a manifest may list a million files.
    file = row["path"] if is_remote(row["path"]) else os.path.join(folder, row["path"])  # noqa: PTH118
    if not is_remote(file) and not os.path.exists(file):  # noqa: PTH110
        return f"no such file: {file}", None
    split = row.get("split") or None
    if split is not None and split not in SPLITS:
        meant = did_you_mean(split, SPLITS)
        return f"`split` must be one of {', '.join(SPLITS)}. Received: {split}{f'.{meant}' if meant else ''}", None
    labels = {name: row[column] for column, name in label_columns.items() if row[column]}
    if labels and len(labels) != len(label_columns):
        return "some label columns are empty; fill all of them, or none", None
    video_id = row.get("video_id") or Path(row["path"]).as_posix()
    return "", VideoRecord(file, video_id, labels, split, row.get("group") or None)


def _divided_groups(records: Iterable[VideoRecord]) -> list[tuple[str, list[str]]]:
    """Groups that are in several splits, each with its splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.group and record.split:
            splits[record.group].add(record.split)
    return [(group, sorted(found)) for group, found in sorted(splits.items()) if len(found) > 1]


def _find_manifest(folder: Path) -> Path | None:
    for suffix in MANIFEST_SUFFIXES:
        if (folder / f"manifest{suffix}").exists():
            return folder / f"manifest{suffix}"
    manifests = [path for path in sorted(folder.glob("*.csv")) if _has_path_column(path)]
    if len(manifests) > 1:
        names = ", ".join(path.name for path in manifests)
        raise DataError(
            f"{folder}: contains several manifests ({names}). Name the one to use, as in --data {manifests[0]}"
        )
    return manifests[0] if manifests else None


def _has_path_column(path: Path) -> bool:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return "path" in next(csv.reader(file), [])


def _did_you_mean(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""
