"""Names of the videos in folders: which files count, which are ignored, which folders are splits, and which hold the
frames of a video."""

import heapq
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from hdc_keras.data.tables import UNUSABLE_CHARACTERS, shown
from hdc_keras.errors import DataError

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
# Frames of a video that is a folder.
IMAGE_SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".webp"])
_DIGITS = re.compile(r"(\d+)")
# Written by operating systems, storage devices and archivers, in lower case. All other such names begin with a dot.
_SYSTEM_NAMES = frozenset(
    [
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recycle",
        "__macosx",
        "desktop.ini",
        "lost+found",
        "system volume information",
        "thumbs.db",
    ]
)
# The split of a folder of that name, in lower case.
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SUFFIX = re.compile(r"\.\w{1,8}")
_SUFFIXES_SHOWN = 5
_LINKS_SHOWN = 3
_WORDS = re.compile(r"[^a-z0-9]+")


def frames_in(folder: Path) -> list[str]:
    """Names of the images in a folder, in the order of the numbers in them: `9.jpg` before `10.jpg`."""
    names = (entry.name for entry in _entries(str(folder)) if entry.is_file() and _is_frame(entry.name))
    return sorted(names, key=lambda name: [(int(part) if part.isdigit() else 0, part) for part in _DIGITS.split(name)])


def folders_of_frames(folder: Path) -> list[str]:
    """The folders below a folder that hold at least two images each, relative to it. Links are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        name = Path(place).relative_to(folder).as_posix()
        if name != "." and sum(map(_is_frame, files)) > 1:
            found.append(name)
    return sorted(found)


def _is_frame(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(name)


def is_video(name: str) -> bool:
    """Whether a name, relative to the folder of the set, is that of a video: by its suffix, and not hidden."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    """Whether a part of a name is hidden, as in `._x.mp4`, or is written by a system, as in `__MACOSX/x.mp4`."""
    return any(part.startswith(".") or part.casefold() in _SYSTEM_NAMES for part in name.split("/"))


def ignored_note(names: Iterable[str]) -> list[str]:
    """A note for the user on files that are not videos: "ignored: 12 .gif, 3 .txt"; none if there are no such files."""
    kinds = Counter("hidden or system" if _is_hidden(name) else _suffix(name) for name in names)
    if not kinds:
        return []
    common = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))[:_SUFFIXES_SHOWN]
    others = kinds.total() - sum(count for _, count in common)
    parts = [f"{count} {kind}" for kind, count in common] + ([f"{others} others"] if others else [])
    return [f"ignored: {', '.join(parts)}"]


def _suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else "without suffix"


class VideosBelow:
    """The names of the videos in a folder and its sub-folders, relative to it, in no particular order.

    Hidden files and folders, and those of operating systems, are ignored. Links are followed, after all other files and
    folders. Each folder and each file is read once, so a link to one that was read already is left out, as is a link to
    a folder that contains the link.

    Attributes:
        folder: the folder.
        ignored: names of the files that are not videos, and of hidden files and folders; known after an iteration.

    Raises:
        DataError: during iteration, if the name of a video is not valid UTF-8 or contains a control character.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.ignored: list[str] = []
        self._left_out_folders: list[str] = []
        self._left_out_files: list[str] = []

    def __iter__(self) -> Iterator[str]:
        self.ignored, self._left_out_folders, self._left_out_files = [], [], []
        read: set[str] = set()
        folders, links, linked_files = [""], list[str](), list[str]()
        while folders or links:
            is_link = not folders
            name = heapq.heappop(links) if is_link else folders.pop()
            place = os.path.realpath(self.folder / name)
            if place in read or (is_link and self._contains(place, name)):
                self._left_out_folders.append(name)
                continue
            read.add(place)
            for entry in _entries(place):
                below = f"{name}/{entry.name}" if name else entry.name
                if _is_hidden(entry.name):
                    self.ignored.append(below)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(below)
                elif entry.is_symlink() and Path(entry.path).is_dir():
                    heapq.heappush(links, below)
                elif not is_video(entry.name):
                    self.ignored.append(below)
                elif entry.is_symlink():
                    linked_files.append(self._usable(below))
                elif entry.is_file():  # and not a pipe, which could not be read to its end
                    yield self._usable(below)
                else:
                    self.ignored.append(below)
        yield from self._first_links(sorted(linked_files), read)

    def _first_links(self, links: Sequence[str], read: set[str]) -> Iterator[str]:
        """The links whose file is not in the set already, itself or by another link."""
        seen: set[str] = set()
        for name in links:
            file = os.path.realpath(self.folder / name)
            folder, _, base = file.rpartition(os.sep)
            is_read = folder in read and is_video(base) and Path(file).is_file()
            if file in seen or is_read:
                self._left_out_files.append(name)
                continue
            seen.add(file)
            yield name

    def notes(self, used: Iterable[str] = ()) -> list[str]:
        """Notes for the user on links that were left out and on ignored files, except those `used` otherwise."""
        reasons = {
            "their folder was read already, or contains the link": self._left_out_folders,
            "their file was read already": self._left_out_files,
        }
        notes = []
        for reason, names in reasons.items():
            if names:
                listed = ", ".join(names[:_LINKS_SHOWN]) + (", ..." if len(names) > _LINKS_SHOWN else "")
                notes.append(f"links left out because {reason}: {len(names)} ({listed})")
        return notes + ignored_note(set(self.ignored) - set(used))

    def _usable(self, name: str) -> str:
        if UNUSABLE_CHARACTERS.search(name):
            raise DataError(
                f"{self.folder}: expected file names in UTF-8, without control characters. Rename {shown(name)}"
            )
        return name

    def _contains(self, place: str, link: str) -> bool:
        """Whether a link is below the folder to which it leads."""
        return Path(os.path.realpath((self.folder / link).parent)).is_relative_to(place)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError:  # such as lost+found at the top of a disk
        return []


def splits_of_folders(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The split of each first-level folder (`train/`, ...), and a note; both empty unless all folders name splits."""
    counts = Counter("".join(name.partition("/")[:2]) for name in names)
    if not all(top.endswith("/") for top in counts):
        return {}, []
    return splits_named(counts, "folders", "there is no folder test/")


def splits_named(counts: Mapping[str, int], source: str, no_test: str) -> tuple[dict[str, str], list[str]]:
    """The split that each name means, and a note; both empty unless all names mean splits.

    Args:
        counts: number of videos by name, such as `train/` or `validation`.
        source: what has these names, for the note.
        no_test: what it means that there is no test split, for the note.
    """
    splits = {name: _SPLIT_FOLDERS.get(name.removesuffix("/").casefold(), "") for name in sorted(counts)}
    if not all(splits.values()):
        return {}, []
    listed = ", ".join(f"{name} ({counts[name]})" for name in splits)
    note = f"splits are taken from {source} (number of videos): {listed}"
    if "test" not in splits.values() and "val" in splits.values():
        alone = ", ".join(name for name, split in splits.items() if split == "val")
        note += f"; {alone} serves as the test split, because {no_test}"
        splits = {name: "test" if split == "val" else split for name, split in splits.items()}
    return splits, [note]


def splits_in_names(counts: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    """The split of each file, from a word of its name or of its folder's, as in `train-00000.tar`; and notes.

    Args:
        counts: number of videos in each file, by its name relative to the set. Of an absolute name, only the file and
            its folder count.

    Returns:
        Splits by name; empty unless the name of every file has the word of one split.
    """
    words = {}
    for name in counts:
        relative = "/".join(PurePosixPath(name).parts[-2:]) if name.startswith("/") else name
        words[name] = {word for word in _WORDS.split(relative.casefold()) if word in _SPLIT_FOLDERS}
    if not any(words.values()):
        return {}, []
    unclear = next((name for name, found in words.items() if len({_SPLIT_FOLDERS[word] for word in found}) != 1), None)
    if unclear is not None:
        return {}, [f"no splits are taken from the names of files, because {unclear} does not name exactly one"]
    word_of = {name: min(found) for name, found in words.items()}
    of_word: Counter[str] = Counter()
    for name, count in counts.items():
        of_word[word_of[name]] += count
    splits, notes = splits_named(of_word, "the names of files", "no file is named test")
    return {name: splits[word] for name, word in word_of.items()}, notes


def files_below(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Names of the files with one of these suffixes in a folder and its sub-folders, relative to it, sorted.

    The suffixes are in lower case and none is that of a video. Hidden files and folders are left out.
    """
    below = VideosBelow(folder)
    for _ in below:
        pass
    return with_suffixes(below.ignored, suffixes)


def with_suffixes(names: Iterable[str], suffixes: Collection[str]) -> list[str]:
    """The names that end in one of these suffixes, which are in lower case, and are not hidden, sorted."""
    return sorted(name for name in names if name.lower().endswith(tuple(suffixes)) and not _is_hidden(name))
