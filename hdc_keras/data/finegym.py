"""FineGym: actions of gymnastics, cut or as parts of longer videos, and its official lists."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdc_keras.data.official_lists import Problems, SetFiles, folder_with, lines_of, no_lists, with_lists
from hdc_keras.data.records import VideoRecord, VideoSet
from hdc_keras.data.tables import shown
from hdc_keras.errors import DataError

LAYOUTS = ("gym99", "gym288")
# As they are released; the version is part of the name of some. Results are reported on the validation set.
_LISTS = {"train": "{}_train_element*.txt", "test": "{}_val_element*.txt"}
_CATEGORIES = "{}_categories*.txt"
_TIMES = "finegym_annotation_info*.json"
# {YouTube id}_E_{start}_{end}_A_{start}_{end}: an action within an event; seconds, rounded down.
_ACTION = re.compile(
    r"(?P<video>[\w-]{11})_(?P<event>E_(?P<event_start>\d{6})_\d{6})_(?P<action>A_(?P<start>\d{4})_(?P<end>\d{4}))"
)
_EVENT = re.compile(r"[\w-]{11}_E_\d{6}_\d{6}")
_VIDEO = re.compile(r"[\w-]{11}")
# Sums of times are free of rounding errors, which ids and tables would show. The official times have 2 decimals.
_DECIMALS = 6
_CATEGORY = re.compile(r"Clabel:\s*(?P<number>\d+);\s*set:\s*(?P<set>\d+);.*?;\s*(?P<name>[^;]+)")


@dataclass(frozen=True)
class _Times:
    """When events and actions take place.

    Attributes:
        file: the official file; `None` if there is none. Times then come from the names of the actions.
        videos: its content.
    """

    file: Path | None
    videos: Mapping[str, Any]

    def of_action(self, name: re.Match[str]) -> tuple[float, float]:
        """Start and end of an action in seconds from the start of its event. Raises `ValueError` if they are
        missing."""
        if self.file is None:
            # The end is rounded down, too.
            return float(name["start"]), float(name["end"]) + 1.0
        event = self._event(name)
        try:
            stages = event["segments"][name["action"]]["timestamps"]
            start, end = float(stages[0][0]), float(stages[-1][1])
        except (KeyError, TypeError, IndexError, ValueError):
            start, end = 0.0, 0.0
        if not 0 <= start < end:
            raise ValueError(f"{self.file.name} has no times of this action")
        return start, end

    def of_event(self, name: re.Match[str]) -> float:
        """Start of an event in seconds from the start of its YouTube video. Raises `ValueError` if it is missing."""
        if self.file is None:
            return float(name["event_start"])
        try:
            return float(self._event(name)["timestamps"][0][0])
        except (KeyError, TypeError, IndexError, ValueError):
            raise ValueError(f"{self.file.name} has no times of this event") from None

    def _event(self, name: re.Match[str]) -> Any:
        try:
            return self.videos[name["video"]][name["event"]]
        except (KeyError, TypeError):
            raise ValueError(f"{self.file and self.file.name} has no times of this event") from None


def read_gym99(folder: Path, annotations: Path | None = None) -> VideoSet:
    """Read Gym99, as `read_finegym` does."""
    return read_finegym(folder, annotations, "gym99")


def read_gym288(folder: Path, annotations: Path | None = None) -> VideoSet:
    """Read Gym288, as `read_finegym` does."""
    return read_finegym(folder, annotations, "gym288")


def read_finegym(folder: Path, annotations: Path | None, layout: str) -> VideoSet:
    """Read FineGym (Shao et al., CVPR 2020): gymnastic elements of 99 or 288 classes, and the official lists.

    The format is that of the files on the project page (https://sdolivia.github.io/FineGym), as public code that reads
    them uses it: MMAction2's tools/data/gym, which cuts the videos, and finegym/util.py of jhong93/vpd.

    `gym99_train_element_v1.1.txt` and `gym99_val_element.txt` have `{id}_E_{start}_{end}_A_{start}_{end} CLASS` on each
    line: the YouTube video, the event in it, the action in the event, and the number of the class.
    `gym99_categories.txt` names the classes (`Clabel: 0; set: 1; Glabel: 1; (VT) round-off, ...`); the set is added to
    a name that two classes share. The validation set serves as the test set, as is usual.

    For each listed action, the first file that exists is used: the clip of the action; the clip of its event,
    `{id}_E_{start}_{end}`; or the video, `{id}`, of any suffix. From the latter two, a part is taken. Its times are
    those of `finegym_annotation_info_v1.1.json` or, without that file, whole seconds from the name, which a note says.
    Actions of one YouTube video share a group within a split.

    Args:
        folder: contains the videos, in any arrangement of folders.
        annotations: contains the lists; searched for in and next to `folder` when `None`.
        layout: "gym99" or "gym288".
    """
    lists = finegym_lists(layout, folder, annotations)
    if lists is None:
        _require_both_lists(layout, folder, annotations)
        expected = " and ".join(pattern.format(layout) for pattern in _LISTS.values())
        raise no_lists(f"FineGym ({layout.capitalize()})", expected, folder, annotations)
    files, problems, records = SetFiles(folder, by_folder=False, exact=True), Problems(), []
    names = _categories(lists, layout, problems)
    times = _read_times(lists)
    listed: dict[str, str] = {}
    for split, pattern in _LISTS.items():
        file = _only(lists, pattern.format(layout))
        for number, line in lines_of(file, problems):
            video, _, label = line.partition(" ")
            match, label = _ACTION.fullmatch(video), label.strip()
            is_class = label.isascii() and label.isdigit()
            if match and is_class and names and int(label) not in names:
                problems.add(file, number, f"class {label} is not in {layout}_categories.txt. Received: {shown(line)}")
                continue
            if not match or not is_class:
                expected = "ID_E_START_END_A_START_END and the number of a class"
                problems.add(file, number, f"expected {expected}. Received: {shown(line)}")
                continue
            if video in listed:
                problems.add(file, number, f"{video} is already listed on {listed[video]}")
                continue
            listed[video] = f"line {number} of {file.name}"
            try:
                found = _find(files, match, times)
            except ValueError as error:
                problems.add(file, number, f"{video}: {error}")
                continue
            if found:
                labels = {"label": names[int(label)] if names else label}
                group = f"{split}/{match['video']}"
                records.append(VideoRecord(str(found[0]), video, labels, split, group, segment=found[1]))
    problems.raise_any()
    notes = ["the official validation set serves as the test set, as is usual for FineGym"]
    other = next(other for other in LAYOUTS if other != layout)
    if list(lists.glob(_LISTS["train"].format(other))):
        notes.append(f"the lists of {other.capitalize()} are there, too: data.layout={other} uses them")
    notes += [] if names else [f"classes are numbers, because there is no {layout}_categories.txt"]
    if times.file is None and any(record.segment for record in records):
        notes.append(f"times are whole seconds from the names of the actions, because there is no {_TIMES}")
    return with_lists(f"FineGym ({layout.capitalize()})", "official lists", [lists], records, files, notes)


def finegym_lists(layout: str, folder: Path, annotations: Path | None = None) -> Path | None:
    """The folder of the lists of Gym99 or Gym288, or `None`."""
    found = folder_with(_LISTS["train"].format(layout), folder, annotations)
    return found if found and next(found.glob(_LISTS["test"].format(layout)), None) else None


def _require_both_lists(layout: str, folder: Path, annotations: Path | None) -> None:
    """Raise `DataError` if one of the lists is there, and the other is not beside it."""
    for pattern, other in zip(_LISTS.values(), reversed(_LISTS.values()), strict=True):
        found = folder_with(pattern.format(layout), folder, annotations)
        if found and not list(found.glob(other.format(layout))):
            one = next(found.glob(pattern.format(layout)))
            raise DataError(f"{found}: contains {one.name}, but not {other.format(layout)}. FineGym needs both lists.")


def detect_finegym(names: Sequence[str], folder: Path, annotations: Path | None = None) -> str | None:
    """The layout, if some names of videos, without suffix, are those of FineGym; Gym99 if it has both lists."""
    if not all(any(kind.fullmatch(name) for kind in (_ACTION, _EVENT, _VIDEO)) for name in names):
        return None
    for layout in LAYOUTS:
        lists = finegym_lists(layout, folder, annotations)
        if lists is None:
            _require_both_lists(layout, folder, annotations)
        else:
            files = [file for pattern in _LISTS.values() for file in lists.glob(pattern.format(layout))]
            lines = [line for file in files for _, line in lines_of(file, Problems())]
            known = {known for line in lines if (match := _ACTION.match(line)) for known in _stems(match)}
            if 2 * sum(name in known for name in names) >= len(names):
                return layout
    return None


def _stems(action: re.Match[str]) -> tuple[str, str, str]:
    """Names of the files that may hold an action: its clip, the clip of its event, and the video."""
    return action[0], f"{action['video']}_{action['event']}", action["video"]


def _find(files: SetFiles, action: re.Match[str], times: _Times) -> tuple[Path, tuple[float, float] | None] | None:
    """The file of an action, and the part of it. Raises `ValueError` if the part is not known."""
    clip, event, video = _stems(action)
    path = files.find_shared(clip, clip, event, video)
    if path is None:
        return None
    for other in (event, video):
        files.take(other)  # longer videos beside the clips are not unlisted
    if path.stem == clip:
        return path, None
    start, end = times.of_action(action)
    offset = times.of_event(action) if path.stem == video else 0.0
    return path, (round(offset + start, _DECIMALS), round(offset + end, _DECIMALS))


def _only(lists: Path, pattern: str) -> Path:
    found = sorted(lists.glob(pattern))
    if len(found) > 1:
        raise DataError(
            f"{lists}: contains several lists ({', '.join(path.name for path in found)}). Keep one of them."
        )
    return found[0]


def _categories(lists: Path, layout: str, problems: Problems) -> dict[int, str]:
    """Names of the classes by number; empty if there is no list of them."""
    if not list(lists.glob(_CATEGORIES.format(layout))):
        return {}
    file = _only(lists, _CATEGORIES.format(layout))
    found = {}
    for number, line in lines_of(file, problems):
        match = _CATEGORY.fullmatch(line)
        if match:
            found[int(match["number"])] = (match["name"].strip(), match["set"])
        else:
            problems.add(file, number, f"expected Clabel: NUMBER; set: NUMBER; ...; NAME. Received: {shown(line)}")
    counts = Counter(name for name, _ in found.values())
    return {number: name if counts[name] == 1 else f"{name} [set {of_set}]" for number, (name, of_set) in found.items()}


def _read_times(lists: Path) -> _Times:
    if not list(lists.glob(_TIMES)):
        return _Times(None, {})
    file = _only(lists, _TIMES)
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected an object with the events of each YouTube video.")
    return _Times(file, content)
