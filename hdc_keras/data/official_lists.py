"""What the readers of data sets with official lists share: finding lists and videos, and reporting what is wrong."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hdc_keras.data.folders import VideosBelow, folders_of_frames, splits_of_folders
from hdc_keras.data.records import VideoRecord, VideoSet, counted
from hdc_keras.errors import DataError

_NAMES_SHOWN = 3
_PROBLEMS_SHOWN = 20


def folder_with(pattern: str, folder: Path, annotations: Path | None) -> Path | None:
    """The folder that contains the lists: in `annotations` if given, otherwise in or next to the folder of videos."""
    if annotations:
        places = [annotations, *_subfolders(annotations)]
    else:
        places = [folder, *_subfolders(folder), folder.parent, *_subfolders(folder.parent)]
    return next((place for place in places if next(place.glob(pattern), None)), None)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def no_lists(name: str, expected: str, folder: Path, annotations: Path | None) -> DataError:
    """The error for a set that cannot be read without its lists."""
    require_lists(annotations, expected)
    return DataError(
        f"{folder}: no lists of {name} found. Expected {expected} in or next to the videos. Set data.annotations to "
        "their folder."
    )


def require_lists(annotations: Path | None, expected: str) -> None:
    """Raise `DataError` if the user named a folder of lists. Call it when that folder holds none."""
    if annotations:
        raise DataError(f"{annotations}: contains no official lists. Expected {expected}.")


def with_lists(
    name: str, used: str, lists: Sequence[Path], records: list[VideoRecord], files: "SetFiles", notes: Sequence[str]
) -> VideoSet:
    """The videos that the official lists name. `lists` are the files, or the folder that contains them."""
    if not records:
        raise DataError(f"{files.folder}: contains none of the videos in the {name} lists.")
    place = lists[0].parent if lists[0].is_file() else lists[0]
    return VideoSet(records, [f"{name}: {used} in {place}, {counted(records, 'video')}", *notes, *files.notes(lists)])


def without_lists(name: str, records: list[VideoRecord], files: "SetFiles", expected: str) -> VideoSet:
    """The videos of a set without its official lists. Split folders give the splits; otherwise there are none."""
    places = [Path(record.path).relative_to(files.folder).as_posix() for record in records]
    splits, notes = splits_of_folders(places)
    if splits:
        records = [
            replace(
                record,
                video_id=place,  # the usual id leaves out the split folder, and two splits may hold files of one name
                labels=record.labels if place.count("/") > 1 else {},
                split=splits[place.partition("/")[0] + "/"],
            )
            for record, place in zip(records, places, strict=True)
        ]
    drawn = "" if splits else ", so held-out videos are drawn by group"
    note = (
        f"no official lists were found in or next to the videos ({expected}){drawn}; if you have the lists, set "
        "data.annotations to their folder"
    )
    return VideoSet(records, [f"{name}: {counted(records, 'video')}", note, *notes, *files.notes()])


def lines_of(path: Path, problems: "Problems") -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that is not empty."""
    if not path.exists():
        problems.add(path, None, "no such file")
        return
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if line.strip():
            yield number, line.strip()


class Problems:
    """Collects the problems of the official lists and raises one error for all of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, path: Path, number: int | None, problem: str, unit: str = "line") -> None:
        """Note a problem of a list, or of one of its lines or entries."""
        self.lines.append(f"{path}{'' if number is None else f', {unit} {number}'}: {problem}")

    def raise_any(self) -> None:
        """Raise `DataError` if there were problems."""
        if self.lines:
            more = f"\n  and {len(self.lines) - _PROBLEMS_SHOWN} more" if len(self.lines) > _PROBLEMS_SHOWN else ""
            shown = "\n  ".join(self.lines[:_PROBLEMS_SHOWN])
            raise DataError(f"{len(self.lines)} problem(s) in the official lists:\n  {shown}{more}")


class SetFiles:
    """The videos of a set: those in a folder, found by name regardless of suffix.

    Args:
        folder: searched recursively.
        by_folder: whether the folder of a video is part of its name.
        exact: whether case and punctuation matter, as they do in YouTube ids.
        of_frames: whether each video is a folder of images.
    """

    def __init__(self, folder: Path, by_folder: bool, exact: bool = False, of_frames: bool = False):
        self.folder = folder
        self.found = VideosBelow(folder)
        self.paths = sorted(folder / name for name in (folders_of_frames(folder) if of_frames else self.found))
        self.by_folder = by_folder
        self.exact = exact
        self.by_key: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self.by_key[self._key(path.parent.name, path.stem)].append(path)
        self.missing: list[str] = []
        self.respelled: list[str] = []
        self.used: set[Path] = set()

    def find(self, folder: str, *stems: str) -> Path | None:
        """Find a video by the first of several names that exists; record it if it is missing or spelled differently."""
        for stem in stems:
            candidates = [path for path in self.by_key.get(self._key(folder, stem), ()) if path not in self.used]
            same_spelling = [path for path in candidates if path.stem == stem]
            if candidates:
                path = (same_spelling or candidates)[0]
                self.used.add(path)
                if path.stem != stem or (folder and path.parent.name != folder):
                    self.respelled.append(f"{folder}/{stem}" if folder else stem)
                return path
        self.missing.append(f"{folder}/{stems[0]}" if folder else stems[0])
        return None

    def find_shared(self, name: str, *stems: str) -> Path | None:
        """Like `find`, for a file that holds several listed videos. `name` is that of the video, if it is missing."""
        for stem in stems:
            if candidates := self.by_key.get(self._key("", stem)):
                self.used.add(candidates[0])
                return candidates[0]
        self.missing.append(name)
        return None

    def take(self, stem: str) -> bool:
        """Count a video as listed, although it is not used. Returns whether it exists."""
        found = self.by_key.get(self._key("", stem), ())
        self.used.update(found)
        return bool(found)

    def notes(self, lists: Sequence[Path] = ()) -> list[str]:
        """Notes for the user on missing, differently spelled and unlisted videos, links left out and ignored files.

        Args:
            lists: the official lists, or the folder that contains them; they do not count as ignored.
        """
        notes = []
        if self.missing:
            notes.append(f"listed videos that are missing: {len(self.missing)} ({first_names(self.missing)})")
        if self.respelled:
            names = first_names(self.respelled)
            notes.append(f"videos spelled differently than in the lists: {len(self.respelled)} ({names})")
        unlisted = [path.name for path in self.paths if path not in self.used]
        if self.used and unlisted:
            notes.append(f"videos left out because no list names them: {len(unlisted)} ({first_names(unlisted)})")
        used = [name for name in self.found.ignored if {self.folder / name, (self.folder / name).parent} & {*lists}]
        return notes + self.found.notes(used)

    def _key(self, folder: str, stem: str) -> str:
        name = f"{folder}/{stem}" if self.by_folder else stem
        return name if self.exact else re.sub(r"[^0-9a-z/]+", "_", name.casefold())


def first_names(names: Sequence[str]) -> str:
    """The first few names, for a note."""
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
