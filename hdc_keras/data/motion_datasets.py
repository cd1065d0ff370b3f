"""Data sets in which motion tells the class: Something-Something V2, Jester and Diving48."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from hdc_keras.data.official_lists import Problems, SetFiles, folder_with, lines_of, no_lists, with_lists
from hdc_keras.data.records import VideoRecord, VideoSet
from hdc_keras.data.tables import shown
from hdc_keras.errors import DataError

# As they are released, and as older releases were named. Results are reported on the validation set.
_SSV2_LISTS = {"train": "*train.json", "test": "*validation.json"}
_SSV2_UNUSED = "*test.json"
_SSV2_NAME = re.compile(r"\d+")
_JESTER_LISTS = {"train": "jester-v1-train.csv", "test": "jester-v1-validation.csv"}
_JESTER_UNUSED = "jester-v1-test.csv"
# Number of names that are looked for in the lists.
_NAMES_CHECKED = 20
_DIVING_LISTS = {"train": "Diving48*_train.json", "test": "Diving48*_test.json"}
_DIVING_VOCABULARY = "Diving48*_vocab.json"
# {YouTube id}_{number of the dive}
_DIVING_NAME = re.compile(r"(?P<youtube_id>[\w-]{11})_\d{5}")


def read_something_something_v2(folder: Path, annotations: Path | None = None) -> VideoSet:
    """Read Something-Something V2 (Goyal et al., ICCV 2017): videos `{id}.webm`, and the official lists.

    The lists are `train.json` and `validation.json`, maybe with a prefix such as `something-something-v2-`: arrays of
    objects with `id` and `template`. The class is the template without brackets, as in `labels.json`. The validation
    set serves as the test set, as is usual, because the test set was released without labels.

    Args:
        folder: contains the videos, in any arrangement of folders.
        annotations: contains the lists; searched for in and next to `folder` when `None`.
    """
    lists = ssv2_lists(folder, annotations)
    if lists is None:
        raise no_lists("Something-Something V2", "train.json and validation.json", folder, annotations)
    files, problems, records = SetFiles(folder, by_folder=False, exact=True), Problems(), []
    for split, pattern in _SSV2_LISTS.items():
        for file, number, entry in _entries(lists, pattern, problems):
            video, template = entry.get("id"), entry.get("template")
            if not video or not isinstance(template, str) or not template:
                problems.add(
                    file, number, f"expected an object with `id` and `template`. Received: {_text(entry)}", "entry"
                )
            elif path := files.find("", str(video)):
                label = re.sub(r"[\[\]]", "", template)
                records.append(VideoRecord(str(path), path.stem, {"label": label}, split))
    unused = [str(entry.get("id")) for _, _, entry in _entries(lists, _SSV2_UNUSED, problems, required=False)]
    problems.raise_any()
    notes = ["the official validation set serves as the test set, as is usual for Something-Something"]
    left_out = [video for video in unused if files.take(video)]
    notes += [f"videos left out because they belong to the official test set: {len(left_out)}"] if left_out else []
    return with_lists("Something-Something V2", "official lists", [lists], records, files, notes)


def is_something_something_v2(names: Sequence[str], folder: Path, annotations: Path | None = None) -> bool:
    """Whether most of some names of videos, without suffix, are in lists of Something-Something V2."""
    if not all(map(_SSV2_NAME.fullmatch, names)) or not (lists := ssv2_lists(folder, annotations)):
        return False
    return _most(names, [lists / pattern for pattern in (*_SSV2_LISTS.values(), _SSV2_UNUSED)], "id")


def _most(names: Sequence[str], patterns: Sequence[Path], key: str) -> bool:
    """Whether half of the names or more are in lists of objects with this key. Other files are ignored."""
    listed: set[str] = set()
    for pattern in patterns:
        for file in pattern.parent.glob(pattern.name):
            with suppress(DataError):
                entries = _read(file)
                entries = entries if isinstance(entries, list) else []
                listed.update(str(entry.get(key)) for entry in entries if isinstance(entry, dict))
    return 2 * sum(name in listed for name in names) >= len(names)


def ssv2_lists(folder: Path, annotations: Path | None = None) -> Path | None:
    """The folder of the lists of Something-Something V2, or `None`."""
    found = folder_with(_SSV2_LISTS["test"], folder, annotations)
    return found if found and next(found.glob(_SSV2_LISTS["train"]), None) else None


def read_jester(folder: Path, annotations: Path | None = None) -> VideoSet:
    """Read Jester (Materzynska et al., ICCV workshops 2019): folders of frames `{id}/00001.jpg`, and official lists.

    The lists are `jester-v1-train.csv` and `jester-v1-validation.csv`, with `id;class` on each line. The validation set
    serves as the test set, as is usual, because the test set was released without labels.

    Args:
        folder: contains the folders of frames.
        annotations: contains the lists; searched for in and next to `folder` when `None`.
    """
    lists = jester_lists(folder, annotations)
    if lists is None:
        raise no_lists("Jester", "jester-v1-train.csv and jester-v1-validation.csv", folder, annotations)
    files, problems, records = SetFiles(folder, by_folder=False, exact=True, of_frames=True), Problems(), []
    for split, name in _JESTER_LISTS.items():
        for number, line in lines_of(lists / name, problems):
            video, _, label = line.partition(";")
            if not video or not label:
                problems.add(lists / name, number, f"expected ID;CLASS. Received: {shown(line)}")
            elif path := files.find("", video):
                records.append(VideoRecord(str(path), path.name, {"label": label}, split))
    problems.raise_any()
    notes = ["the official validation set serves as the test set, as is usual for Jester"]
    return with_lists("Jester", "official lists", [lists], records, files, notes)


def is_jester(folder: Path, annotations: Path | None = None) -> bool:
    """Whether half of the first folders of frames in a folder, or more, are in lists of Jester."""
    lists = jester_lists(folder, annotations)
    if lists is None:
        return False
    files = [lists / name for name in (*_JESTER_LISTS.values(), _JESTER_UNUSED)]
    lines = [line for file in files if file.exists() for _, line in lines_of(file, Problems())]
    listed = {line.partition(";")[0] for line in lines}
    names = [path.name for path in islice((path for path in folder.iterdir() if path.is_dir()), _NAMES_CHECKED)]
    inside = [path.name for name in names[:1] for path in islice((folder / name).iterdir(), _NAMES_CHECKED)]
    return any(found and 2 * len(listed.intersection(found)) >= len(found) for found in (names, inside))


def jester_lists(folder: Path, annotations: Path | None = None) -> Path | None:
    """The folder of the lists of Jester, or `None`."""
    found = folder_with(_JESTER_LISTS["train"], folder, annotations)
    return found if found and (found / _JESTER_LISTS["test"]).exists() else None


def read_diving48(folder: Path, annotations: Path | None = None) -> VideoSet:
    """Read Diving48 (Li et al., ECCV 2018): videos `{YouTube id}_{number}.mp4`, and the official lists.

    The lists are `Diving48_V2_train.json` and `Diving48_V2_test.json`, arrays of objects with `vid_name` and `label`,
    and `Diving48_vocab.json`, the name of each label in four parts. Dives of one YouTube video share a group within a
    split.

    Args:
        folder: contains the videos, in any arrangement of folders.
        annotations: contains the lists; searched for in and next to `folder` when `None`.
    """
    lists = diving48_lists(folder, annotations)
    if lists is None:
        raise no_lists("Diving48", "Diving48_V2_train.json and Diving48_V2_test.json", folder, annotations)
    files, problems, records = SetFiles(folder, by_folder=False, exact=True), Problems(), []
    names = _vocabulary(lists)
    for split, pattern in _DIVING_LISTS.items():
        for file, number, entry in _entries(lists, pattern, problems):
            video, label = entry.get("vid_name"), entry.get("label", -1)
            match = _DIVING_NAME.fullmatch(video) if isinstance(video, str) else None
            known = len(names) or math.inf
            is_class = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < known
            if not match or not is_class:
                expected = "an object with `vid_name` and the number of a class as `label`"
                problems.add(file, number, f"expected {expected}. Received: {_text(entry)}", "entry")
            elif path := files.find("", str(video)):
                labels = {"label": names[label] if names else str(label)}
                records.append(VideoRecord(str(path), path.stem, labels, split, f"{split}/{match['youtube_id']}"))
    problems.raise_any()
    notes = [] if names else ["classes are numbers, because there is no Diving48_vocab.json"]
    return with_lists("Diving48", "official lists", [lists], records, files, notes)


def diving48_lists(folder: Path, annotations: Path | None = None) -> Path | None:
    """The folder of the lists of Diving48, or `None`."""
    found = folder_with(_DIVING_LISTS["train"], folder, annotations)
    return found if found and next(found.glob(_DIVING_LISTS["test"]), None) else None


def is_diving48(names: Sequence[str], folder: Path, annotations: Path | None = None) -> bool:
    """Whether most of some names of videos, without suffix, are in lists of Diving48."""
    if not all(map(_DIVING_NAME.fullmatch, names)) or not (lists := diving48_lists(folder, annotations)):
        return False
    return _most(names, [lists / pattern for pattern in _DIVING_LISTS.values()], "vid_name")


def _vocabulary(lists: Path) -> list[str]:
    """The names of the classes of Diving48; empty if there is no list of them."""
    file = next(iter(sorted(lists.glob(_DIVING_VOCABULARY))), None)
    if file is None:
        return []
    names = _read(file)
    if not isinstance(names, list) or not all(isinstance(parts, list | str) for parts in names):
        raise DataError(f"{file}: expected an array with the name of each class in parts.")
    return [parts if isinstance(parts, str) else " ".join(map(str, parts)) for parts in names]


def _entries(
    lists: Path, pattern: str, problems: Problems, required: bool = True
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """The file, the number, from 1, and the content of each entry of a list."""
    found = sorted(lists.glob(pattern))
    if len(found) > 1:
        raise DataError(
            f"{lists}: contains several lists ({', '.join(path.name for path in found)}). Keep one of them."
        )
    if not found:
        if required:
            problems.add(lists / pattern.replace("*", ""), None, "no such file")
        return
    content = _read(found[0])
    if not isinstance(content, list):
        raise DataError(f"{found[0]}: expected an array of objects. Received: {_text(content)}")
    for number, entry in enumerate(content, 1):
        if isinstance(entry, dict):
            yield found[0], number, entry
        else:
            problems.add(found[0], number, f"expected an object. Received: {_text(entry)}", "entry")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error}).") from error


def _text(value: Any) -> str:
    return shown(json.dumps(value, ensure_ascii=False))
