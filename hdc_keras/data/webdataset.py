"""Sets of tar files in the layout of WebDataset: a video, and what is known about it, under one key."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hdc_keras.data.folders import files_below, is_video, splits_in_names, with_suffixes
from hdc_keras.data.members import member_path
from hdc_keras.data.official_lists import Problems, first_names, lines_of
from hdc_keras.data.records import VideoSet, counted, is_label_column, records_of
from hdc_keras.data.tables import Row, checked_row, json_row
from hdc_keras.data.tar_files import TarIndex, tar_index
from hdc_keras.errors import DataError, VideoDecodeError

_SUFFIX = ".tar"
_LIST_SUFFIX = ".txt"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_ANNOTATIONS = ("cls", "txt", "json")
# Our choice: what describes one video has a few hundred bytes.
_ANNOTATION_BYTES = 2**20
# Texts of `.txt` files are labels if there are at least this many videos for each different text; else, captions.
_VIDEOS_OF_A_LABEL = 2


@dataclass
class _Sample:
    """The files with one key.

    Attributes:
        videos: names of the videos in the tar.
        texts: content of the annotations by suffix, without dot.
        problem: why the annotations cannot be read.
    """

    videos: list[str] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""


def read_webdataset(path: Path) -> VideoSet:
    """Read tar files in the layout of WebDataset. Videos stay in their tars, where clips are decoded from.

    The key of a file is its name up to the first dot after the last slash; files with one key belong together
    (`walk/001.mp4`, `walk/001.cls`, `walk/001.json`). A key may have:

    - a video, of any suffix that a folder of videos may have. Keys without a video are left out, which a note says.
    - `.json`: an object, whose `label` or several `label_NAME`, `split` and `group` mean the same as in a manifest.
      Other keys are ignored: `start`, for example, often says where a clip was cut.
    - `.cls`: the label of a video without one in `.json`, a number or a name.
    - `.txt`: the label of a video with neither of them. If there are fewer than two videos for each different text, the
      texts are captions and not used, which a note says.

    Ids are the keys, or TAR/KEY if a key is in several tars. Splits are those of `.json`, or words of the names of tars
    or their folders (`train-00000.tar`, `val/00000.tar`).

    Args:
        path: a `.tar`; a folder with `.tar` files, which may be in sub-folders; or a `.txt` with the path of a `.tar`
            on each line, absolute or relative to it.

    Raises:
        DataError: there are no videos; a tar is compressed or damaged, two videos have one key, or an annotation is not
            readable. One error reports all problems.
    """
    names = _tars(path)
    folder = path.parent if path.is_file() else path
    problems: list[tuple[str, Row]] = []
    samples: dict[tuple[str, str], _Sample] = {}
    notes: list[str] = []
    for name in names:
        try:
            index = tar_index(str(folder / name))
            samples |= {(name, key): sample for key, sample in _samples(index).items()}
        except (VideoDecodeError, OSError) as error:
            cause = error.cause if isinstance(error, VideoDecodeError) else error.strerror or str(error)
            problems.append((name, Row(0, {}, cause)))
            continue
        if not index.is_complete:
            notes.append(f"{name} does not end with the usual mark, so its last videos may be missing")
    with_videos = {place: sample for place, sample in samples.items() if sample.videos}
    if without := [key for (_, key), sample in samples.items() if not sample.videos]:
        notes.append(f"keys left out because they have no video: {len(without)} ({first_names(without)})")
    if not with_videos and not problems:
        listed = "".join(f"\n  {note}" for note in notes)
        raise DataError(f"{path}: contains no videos in {counted(names, 'tar')}.{listed}")
    rows, more_notes = _rows(with_videos)
    columns = {column: None for _, row in rows for column in row.values}
    records = records_of(path, columns, _complete([*problems, *rows], columns))
    found = f"WebDataset: {counted(names, 'tar')} in {path}, {counted(records, 'video')}"
    return VideoSet(records, [found, *more_notes, *notes])


def is_webdataset(names: Iterable[str]) -> bool:
    """Whether some names of files are those of tars, compressed or not."""
    return bool(with_suffixes(names, (_SUFFIX, *_COMPRESSED)))


def is_list_of_tars(file: Path) -> bool:
    """Whether the first line of a `.txt` is the path of a tar."""
    if file.suffix.lower() != _LIST_SUFFIX:
        return False
    first = next((line for _, line in lines_of(file, Problems())), "")
    return is_webdataset([first.rpartition("/")[2]])


def _tars(path: Path) -> list[str]:
    """Names of the tars, relative to the folder."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Expected a .tar, or a folder that contains some.")
    if path.suffix.lower() == _LIST_SUFFIX and path.is_file():
        names = [line for _, line in lines_of(path, Problems())]
    else:
        names = [path.name] if path.is_file() else files_below(path, (_SUFFIX,)) or files_below(path, _COMPRESSED)
    if compressed := [name for name in names if name.lower().endswith(_COMPRESSED)]:
        raise DataError(
            f"{path}: {compressed[0]} is compressed, so single videos cannot be read. Decompress it to a plain .tar; "
            "videos are compressed already."
        )
    if not names:
        raise DataError(f"{path}: contains no tar files. Expected files ending in .tar.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: lists {repeated[0]} more than once.")
    return names


def _samples(index: TarIndex) -> dict[str, _Sample]:
    """The files of a tar by key. Of the contents, only annotations are read."""
    samples: dict[str, _Sample] = {}
    with Path(index.path).open("rb") as file:
        for name, (start, size) in index.ranges.items():
            key, suffix = _key_of(name)
            annotation = suffix.lower()
            if is_video(name):
                sample = samples.setdefault(key, _Sample())
                sample.videos += [name] * (2 if name in index.repeated else 1)
            elif annotation in _ANNOTATIONS and not PurePosixPath(name).name.startswith("."):
                sample = samples.setdefault(key, _Sample())
                if size > _ANNOTATION_BYTES:
                    sample.problem = f"{name} has {size:,} bytes; expected at most {_ANNOTATION_BYTES:,}"
                    continue
                file.seek(start)
                sample.texts[annotation] = file.read(size)
    return samples


def _key_of(name: str) -> tuple[str, str]:
    """The key of a file and the rest of its name."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix


def _rows(samples: dict[tuple[str, str], _Sample]) -> tuple[list[tuple[str, Row]], list[str]]:
    """A row for each video, with its place, and notes."""
    rows = [_annotated(sample) for sample in samples.values()]
    notes = _add_texts([*samples.values()], rows)
    is_unique = len({key for _, key in samples}) == len(samples)
    if not is_unique:
        notes.append("ids are TAR/KEY, because some keys are in several tars")
    splits: dict[str, str] = {}
    if not any(row.values.get("split") for row in rows):
        splits, more = splits_in_names(Counter(tar for tar, _ in samples))
        notes += more
    places = []
    for ((tar, key), sample), row in zip(samples.items(), rows, strict=True):
        if not row.problem:
            row.values["path"] = member_path(tar, sample.videos[0])
            row.values["video_id"] = key if is_unique else f"{tar.removesuffix(_SUFFIX)}/{key}"
            row.values.update({"split": splits[tar]} if splits else {})
            row = checked_row(0, row.values)
        places.append((f"{tar}, {key}", row))
    return places, notes


def _annotated(sample: _Sample) -> Row:
    """What `.json` and `.cls` say about a video."""
    if sample.problem:
        return Row(0, {}, sample.problem)
    if len(sample.videos) > 1:
        return Row(0, {}, f"expected one video for a key. Received: {', '.join(sample.videos)}")
    values: dict[str, str] = {}
    if "json" in sample.texts:
        row = json_row(0, sample.texts["json"], lambda name: name in ("split", "group") or is_label_column(name))
        if row.problem:
            return row._replace(problem=f".json: {row.problem}")
        values = {name: value for name, value in row.values.items() if value}
    if "cls" in sample.texts and not any(map(is_label_column, values)):
        values["label"] = _text(sample.texts["cls"])
    return Row(0, values)


def _add_texts(samples: list[_Sample], rows: list[Row]) -> list[str]:
    """Take `.txt` for the label of videos without another one, unless these are captions. Returns notes."""
    texts = {
        number: _text(sample.texts["txt"])
        for number, (sample, row) in enumerate(zip(samples, rows, strict=True))
        if "txt" in sample.texts and not row.problem and not any(map(is_label_column, row.values))
    }
    different = len(set(texts.values()))
    if len(texts) < _VIDEOS_OF_A_LABEL * different:
        return [f"the texts of .txt files are not used as labels, because {different} of {len(texts)} differ"]
    for number, text in texts.items():
        rows[number].values["label"] = text
    return []


def _text(content: bytes) -> str:
    # Bytes that are not UTF-8 become surrogates, so that they are reported with their place.
    return content.decode("utf-8-sig", errors="surrogateescape").strip()


def _complete(rows: list[tuple[str, Row]], columns: dict[str, None]) -> Iterator[tuple[str, Row]]:
    """The rows, each with all columns."""
    for place, row in rows:
        yield place, row if row.problem else row._replace(values={name: row.values.get(name, "") for name in columns})
