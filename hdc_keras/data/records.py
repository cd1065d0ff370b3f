"""Video records: read from class folders, plain folders and manifests, and divided into splits by group."""

import difflib
import math
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hdc_keras.data.folders import (
    VIDEO_SUFFIXES,
    VideosBelow,
    folders_of_frames,
    frames_in,
    ignored_note,
    is_video,
    splits_of_folders,
)
from hdc_keras.data.members import file_of, member_of, member_path, require_member, resolved
from hdc_keras.data.remote import is_remote, list_files, url_problem
from hdc_keras.data.sampling import random_generator
from hdc_keras.data.tables import Row, Table, read_table, shown
from hdc_keras.errors import DataError, VideoDecodeError, did_you_mean

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
SPLITS = ("train", "val", "test")
_SEGMENT = ("start", "end")
_COLUMNS = frozenset(["path", "label", "split", "group", "video_id", *_SEGMENT])
_LABEL_PREFIX = "label_"
# What some file system does not allow in a name.
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_LABEL_NAME_BYTES = 100
# A CSV file that is not named manifest.csv must list this share of the videos of its folder.
_MANIFEST_SHARE = 0.9
_ERRORS_SHOWN = 20
_CHARACTERS_SHOWN = 300


# Records have slots, because sets have millions of them.
@dataclass(frozen=True, slots=True)
class StoredVideo:
    """Location of a prepared video's frames: one record of a TFRecord shard.

    Attributes:
        shard: path of the shard.
        offset: first byte of the record.
        size: number of bytes of the record, including its length and checksums.
        frames: number of frames.
        rate: frames per second; 0 if unknown.
        table: position of the table of frames in the record; 0 if it has none, as in sets of version 0.1.0.
    """

    shard: str
    offset: int
    size: int
    frames: int
    rate: float
    table: int = 0


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video: its location and what is known about it.

    Attributes:
        path: path or URL of the file, or of a video inside another file, as `members` describes.
        video_id: unique within the set. Sampling depends on it and not on `path`, so moving a set does not change its
            clips.
        labels: class name by label column; empty if unlabelled. The first entry is the main label.
        split: "train", "val" or "test"; `None` if the set has no splits.
        group: near-duplicates (cuts of one recording) share a group; splits never divide a group.
        stored: location of the frames in a prepared set; `None` if they are decoded from the file.
        segment: the part of the file that is the video, as start and end in seconds; `None` for the whole file.
    """

    path: str
    video_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    stored: StoredVideo | None = None
    segment: tuple[float, float] | None = None

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
    """Read a set of videos. The first note says how it was read.

    Args:
        path: a video file; a CSV, JSONL or Parquet manifest; a folder that contains one (`manifest.csv`,
            `manifest.jsonl`, `manifest.parquet`, or a single CSV whose `path` column names at least nine tenths of the
            videos in the folder, and only files that exist); a folder of classes, one sub-folder each; a folder of
            videos without labels; or a folder with such a folder for each split (`train`, `val`, `valid`,
            `validation`, `test`). A folder may be a URL. In a folder without video files, each folder of images is a
            video.

    Raises:
        DataError: `path` does not exist, or its content is not valid; the message lists every problem.
    """
    if is_remote(str(path)):
        names = list_files(str(path))
        ignored = ignored_note(name for name in names if not is_video(name))
        return _from_names(str(path), list(filter(is_video, names)), f"{str(path).rstrip('/')}/", ignored)
    if member_of(str(path)) and Path(file_of(str(path))).is_file():
        return _one_member(str(path))
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder. Expected a folder of videos or a CSV manifest.{_did_you_mean(path)}"
        )
    if path.is_file():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return VideoSet([VideoRecord(str(path), path.name)], [f"video file: {path}"])
        if path.suffix.lower() not in MANIFEST_SUFFIXES:
            raise DataError(
                f"{path}: expected a folder of videos, a manifest (*.csv, *.jsonl, *.parquet), a .tar, a .txt with the "
                "path of a .tar on each line, or a video file. To use several files, list them in a CSV with a "
                "`path` column."
            )
        return _from_manifest(path)
    for suffix in MANIFEST_SUFFIXES:
        if (path / f"manifest{suffix}").exists():
            return _from_manifest(path / f"manifest{suffix}")
    return _read_folder(path)


def _one_member(path: str) -> VideoSet:
    require_member(path)
    member = member_of(path)
    assert member
    return VideoSet([VideoRecord(path, member_path(Path(member.file).name, member.name))], [f"video: {path}"])


def _from_manifest(path: Path) -> VideoSet:
    records = read_manifest(path)
    return VideoSet(records, [f"manifest: {path}, {counted(records, 'video')}"])


def read_manifest(path: Path) -> list[VideoRecord]:
    """Read a CSV manifest with a header, a JSONL manifest with one object per line, or a Parquet manifest.

    Columns or keys: `path` (absolute, or relative to the manifest; required), `label` or several `label_NAME`, `split`
    (train, val, test), `group`, `video_id`; and `start` and `end` in seconds, for a row that is a part of its file. The
    parts of a file share a group unless the manifest says otherwise. Other columns are ignored.

    Raises:
        DataError: the manifest is not valid; the message lists every bad line with its number.
    """
    table = _read_rows(path)
    records = records_of(path, table.columns, ((f"line {row.line}", row) for row in table.rows))
    if not records:
        raise DataError(f"{path}: lists no videos. Expected one line per video{_below_header(path)}.")
    return records


def records_of(source: Path, columns: Iterable[str], rows: Iterable[tuple[str, Row]]) -> list[VideoRecord]:
    """The videos that rows describe.

    Args:
        source: the file, or the folder of the files, to which the rows belong; for messages. Relative paths of videos
            are relative to its folder, or to it.
        columns: those of `read_manifest`, as far as the rows have them.
        rows: each with its place in `source`, for messages.

    Raises:
        DataError: there are problems; the message lists them with their places.
    """
    folder = source if source.is_dir() else source.parent
    records: list[VideoRecord] = []
    places: list[str] = []
    seen: dict[str, str] = {}
    files: dict[tuple[int | str, Any], int] = {}  # row of each file, or part of one
    of_file: dict[int | str, list[int]] = {}
    label_columns = {c: "label" for c in columns if c == "label"} or {
        c: c.removeprefix(_LABEL_PREFIX) for c in columns if c.startswith(_LABEL_PREFIX)
    }
    problems = [problem for name in label_columns.values() if (problem := label_name_problem(name))]
    for place, row in rows:
        problem, record, file = _read_row(row, folder, label_columns)
        if record is None:
            problems.append(f"{place}: {problem}")
            continue
        if record.video_id in seen:
            problems.append(f"{place}: `{record.video_id}` is already listed on {seen[record.video_id]}")
        elif (same := files.get((file, record.segment))) is not None and _are_one_file(records[same].path, record.path):
            problems.append(f"{place}: the file of `{record.video_id}` is already listed on {places[same]}")
        seen.setdefault(record.video_id, place)
        files.setdefault((file, record.segment), len(records))
        of_file.setdefault(file, []).append(len(records))
        records.append(record)
        places.append(place)
    _group_parts(records, of_file.values())
    divided = divided_groups(records)
    problems += [f"group `{group}` is in several splits ({', '.join(splits)})" for group, splits in divided]
    if any(r.split for r in records) and not all(r.split for r in records):
        problems.append("some rows have a split and others do not; give every row a split, or none")
    if problems:
        listed = "\n  ".join(problems[:_ERRORS_SHOWN])
        more = f"\n  and {len(problems) - _ERRORS_SHOWN} more" if len(problems) > _ERRORS_SHOWN else ""
        raise DataError(f"{source}: {len(problems)} problem(s):\n  {listed}{more}")
    return records


def _read_rows(path: Path) -> Table:
    return read_table(path, "path", lambda column: column in _COLUMNS or is_label_column(column))


def is_label_column(name: str) -> bool:
    """Whether a column or key of this name holds labels: `label`, or one of several `label_NAME`."""
    return name == "label" or name.startswith(_LABEL_PREFIX)


def _below_header(path: Path) -> str:
    return " below the header" if path.suffix.lower() == ".csv" else ""


def label_name_problem(name: str) -> str:
    """Why a name of labels, as in `label_NAME`, cannot be part of a file name; empty if it can."""
    if name and not name.startswith(".") and not _NOT_IN_NAMES.search(name) and len(name.encode()) <= _LABEL_NAME_BYTES:
        return ""
    return (
        f"labels `{shown(name)}`: the name becomes part of file names. Expected 1 to {_LABEL_NAME_BYTES} bytes, "
        'without / \\ : * ? " < > | and without a dot at the beginning'
    )


def counted(items: Sequence[object], name: str, plural: str = "") -> str:
    """The number of items with their name, as in "1 video" and "2 videos"."""
    return f"{len(items)} {name if len(items) == 1 else plural or f'{name}s'}"


def _read_folder(folder: Path) -> VideoSet:
    """Read a folder without a file named manifest.

    It has a CSV file that lists its videos, one sub-folder per class (searched recursively), or videos without labels.
    Sub-folders and videos may be in split folders.
    """
    found = VideosBelow(folder)
    names = list(found)
    manifests, others = _manifests_among(folder, names)
    if len(manifests) > 1:
        listed = ", ".join(path.name for path in manifests)
        raise DataError(
            f"{folder}: contains several manifests ({listed}). Name the one to use, as in --data {manifests[0]}"
        )
    if manifests:
        records, notes = _from_manifest(manifests[0])
        return VideoSet(records, [*notes, *others.values()])
    if not names and (frames := folders_of_frames(folder)):
        records, notes = _from_names(str(folder), frames, f"{folder}/", list(others.values()))
        return VideoSet(records, [f"folders of frames: {counted(frames, 'video')}", *notes])
    return _from_names(str(folder), names, f"{folder}/", [*others.values(), *found.notes(used=others)])


def _manifests_among(folder: Path, names: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The CSV files in a folder that list its videos; and for others with a `path` column, by name, a note why not."""
    manifests: list[Path] = []
    notes: dict[str, str] = {}
    videos: set[int | str] | None = None
    for path in sorted(folder.glob("*.csv")):
        try:
            table = _read_rows(path)
        except DataError:  # It has no `path` column.
            continue
        if path.name.startswith("."):
            continue
        if videos is None:
            videos = {file for name in names if (file := _identity(str(folder / name)))}
        reason = _reason_against(table, folder, videos)
        if reason:
            notes[path.name] = f"{path.name} is not used as manifest, because {reason}; to use it: --data {path}"
        else:
            manifests.append(path)
    return manifests, notes


def _reason_against(table: Table, folder: Path, videos: set[int | str]) -> str:
    """Why a table is not taken for the list of the videos in a folder; empty if it is."""
    paths = [row.values["path"] for row in table.rows if row.values.get("path")]
    listed = [_identity(_located(path, folder)) for path in paths]
    missing = listed.count(None)
    if not paths:
        return "it lists no videos"
    if missing:
        return f"{missing} of its {len(paths)} paths do not exist"
    covered = len(videos.intersection(file for file in listed if file))
    if covered < _MANIFEST_SHARE * len(videos):
        return f"it lists only {covered} of the {len(videos)} videos in the folder"
    return ""


def _from_names(folder: str, names: Sequence[str], prefix: str, other_notes: Sequence[str]) -> VideoSet:
    if not names:
        reasons = "".join(f"\n  {note}" for note in other_notes)
        raise DataError(
            f"{folder}: contains no videos. Expected files ending in {', '.join(sorted(VIDEO_SUFFIXES))}, directly or "
            f"in one sub-folder per class.{reasons}"
        )
    names = sorted(names)
    splits, notes = splits_of_folders(names)
    records = []
    for top in splits or [""]:
        inside = [name.removeprefix(top) for name in names if name.startswith(top)]
        loose = [name for name in inside if "/" not in name]
        if loose and len(loose) != len(inside):
            reasons = "".join(f"\n  {note}" for note in other_notes)
            raise DataError(
                f"{folder}: some videos are in class folders and some are not (such as {top}{loose[0]}). Move them, "
                f"or list them in a CSV manifest.{reasons}"
            )
        for name in inside:
            labels = {} if loose else {"label": name.partition("/")[0]}
            records.append(VideoRecord(f"{prefix}{top}{name}", f"{top}{name}", labels, splits.get(top)))
    return VideoSet(records, [_how_read(records), *notes, *other_notes])


def _how_read(records: Sequence[VideoRecord]) -> str:
    classes = {record.label for record in records if record.label}
    unlabelled = [record for record in records if not record.label]
    if not classes:
        return f"folder without labels: {counted(records, 'video')}"
    without = f" ({len(unlabelled)} without a class)" if unlabelled else ""
    return f"class folders: {counted(list(classes), 'class', 'classes')}, {counted(records, 'video')}{without}"


def sample_files(records: Iterable[VideoRecord]) -> list[str]:
    """The file of the first video that lies on this machine, for other machines to look for; none if all are remote.

    A relative path stays one, because parts of a job carry it so.
    """
    paths = (one.stored.shard if one.stored else file_of(one.path) for one in records)
    found = next((path for path in paths if not is_remote(path) and Path(path).exists()), None)
    return [] if found is None else [found]


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


def with_few_labels(records: Sequence[VideoRecord], count: int, seed: int) -> list[VideoRecord]:
    """Keep every test video, and at most `count` of the other videos of each class, drawn as in `at_most_per_class`."""
    others = [record for record in records if record.split != "test"]
    drawn = at_most_per_class([replace(record, split="train") for record in others], count, seed)
    kept = {record.video_id for record in drawn}
    return [record for record in records if record.split == "test" or record.video_id in kept]


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


def _read_row(row: Row, folder: Path, label_columns: Mapping[str, str]) -> tuple[str, VideoRecord | None, int | str]:
    """Read one row of a manifest. Returns a problem, `None` and 0; or an empty string, the record and its file."""
    values = row.values
    if row.problem or not values["path"]:
        return row.problem or "`path` is empty", None, 0
    problem = url_problem(values["path"]) if is_remote(values["path"]) else ""
    if problem:
        return f"{shown(values['path'], _CHARACTERS_SHOWN)}: {problem}", None, 0
    path = _located(values["path"], folder)
    file = _identity(path)
    if file is None:
        return _why_not(path), None, 0
    split = values.get("split") or None
    if split is not None and split not in SPLITS:
        meant = did_you_mean(split, SPLITS)
        return (
            f"`split` must be one of {', '.join(SPLITS)}. Received: {shown(split)}{f'.{meant}' if meant else ''}",
            None,
            0,
        )
    labels = {name: values[column] for column, name in label_columns.items() if values[column]}
    if labels and len(labels) != len(label_columns):
        return "some label columns are empty; fill all of them, or none", None, 0
    try:
        segment = segment_of(*(values.get(column, "") for column in _SEGMENT))
    except ValueError as error:
        return str(error), None, 0
    name = Path(values["path"]).as_posix()
    video_id = values.get("video_id") or (f"{name}#{segment[0]:.10g}-{segment[1]:.10g}" if segment else name)
    return "", VideoRecord(path, video_id, labels, split, values.get("group") or None, segment=segment), file


def segment_of(start: str, end: str) -> tuple[float, float] | None:
    """The part of a file that a row names; `None` for all of it. Raises `ValueError` if it is none."""
    if not start and not end:
        return None
    try:
        first, last = float(start), float(end)
    except ValueError:
        first, last = math.nan, math.nan
    if not 0 <= first < last < math.inf:
        raise ValueError(f"expected `start` < `end` in seconds, or neither. Received: {shown(f'{start} and {end}')}")
    return first, last


def _located(path: str, folder: Path) -> str:
    # Strings are faster than `Path`, and a manifest may list a million files.
    return path if is_remote(path) else os.path.join(folder, path)  # noqa: PTH118


def _identity(path: str) -> int | str | None:
    """The same for two paths of one video: a URL itself, or device and inode, and the name in that file. `None` if it
    is not the path of a video."""
    if is_remote(path):
        return path
    try:
        status = os.stat(file_of(path))  # noqa: PTH116
        if member := member_of(path):
            require_member(path)
            return f"{status.st_dev} {status.st_ino} {member.name}"
    except (OSError, VideoDecodeError):
        return None
    is_usable = stat.S_ISREG(status.st_mode) or (stat.S_ISDIR(status.st_mode) and bool(frames_in(Path(path))))
    return (status.st_dev << 64) + status.st_ino if is_usable else None


def _why_not(path: str) -> str:
    """Why a path is not that of a video."""
    if member_of(path) and Path(file_of(path)).is_file():
        try:
            require_member(path)
        except (OSError, VideoDecodeError) as error:
            return shown(str(error), _CHARACTERS_SHOWN)
    what = "neither a file nor a folder of images" if Path(path).is_dir() else "no such file"
    return f"{what}: {shown(path, _CHARACTERS_SHOWN)}"


def _are_one_file(path: str, other: str) -> bool:
    """Whether two paths of one identity are the same file, and not two hard links, whose content may differ elsewhere.

    Some network disks also give two files one inode.
    """
    return is_remote(path) or resolved(path) == resolved(other)


def _group_parts(records: list[VideoRecord], of_files: Iterable[Sequence[int]]) -> None:
    """Give videos of one file a group, unless they have one, if some of them are parts of it."""
    for rows in of_files:
        if any(records[row].segment for row in rows):
            name = next((record.group for row in rows if (record := records[row]).group), records[rows[0]].path)
            for row in rows:
                records[row] = replace(records[row], group=records[row].group or name)


def divided_groups(records: Iterable[VideoRecord]) -> list[tuple[str, list[str]]]:
    """Groups that are in several splits, each with its splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.group and record.split:
            splits[record.group].add(record.split)
    return [(group, sorted(found)) for group, found in sorted(splits.items()) if len(found) > 1]


def _did_you_mean(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""
