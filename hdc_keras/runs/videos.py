"""The videos of a run, as they were when it began: `evaluate`, `report` and `--resume` keep to this table.

A run without a table (version 0.1.0) is still read: its split is drawn anew from the folder as it is now.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment, load_experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.data.members import open_video_file, resolved, video_bytes
from hdc_keras.data.records import VideoRecord, VideoSet
from hdc_keras.data.remote import is_remote
from hdc_keras.errors import ConfigError, RunError, VideoDecodeError
from hdc_keras.files import write_text

VIDEOS = "videos.csv"
# The training videos of the runs from whose weights this run started (`--init-from`).
EARLIER_VIDEOS = "earlier-videos.csv"
# A copy of `config.yaml` that users do not edit.
STARTED_CONFIG = "config-at-start.yaml"
_COLUMNS = ("video_id", "path", "bytes", "group", "split")
_SEGMENT = ("start", "end")  # only in a table of videos that are parts of files
_LABEL = "label_"
_EXAMPLES = 3
# Of two files of one size, this many bytes at the beginning and in the middle are compared (our choice: a few frames).
_COMPARED_BYTES = 65_536
# Which videos the split is drawn from, and how; another value would draw another one.
_SPLIT_KEYS = ("shapes_per_pair", "official_split", "holdout", "limit", "limit_per_class", "layout", "annotations")
# `--data` resets these keys, also when it names the videos of the run.
_RESET: Mapping[str, Any] = {"layout": "auto", "annotations": None, "limit": None, "limit_per_class": None}
# Keys that may change between two sessions of a run, because the weights do not depend on them except for rounding.
# `data.path` may, because the videos themselves are compared.
_FREE_KEYS = frozenset(
    ["name", "data.path", "data.annotations", "data.layout", "data.cache_gb", "data.workers", "data.max_failed_share"]
    + ["model.weights", "model.init_from"]
    + [f"train.{key}" for key in ("jit", "strategy", "rematerialise", "deterministic", "on_nan", "knn_every")]
    + ["train.checkpoint_every", "train.checkpoint_minutes", "train.keep_checkpoints"]
)


@dataclass(frozen=True)
class KeptVideo:
    """One row of the table.

    Attributes:
        record: the video, without labels and without the place of prepared frames.
        size: bytes of the file, or of the record in a prepared set; `None` if unknown, as for remote files.
    """

    record: VideoRecord
    size: int | None


def write_videos(file: Path, videos: Iterable[VideoRecord | KeptVideo]) -> None:
    """Write a table of videos, atomically. Raises `OSError` when it cannot be written."""
    rows = [video if isinstance(video, KeptVideo) else KeptVideo(video, size_of(video)) for video in videos]
    labels = list(dict.fromkeys(column for row in rows for column in row.record.labels))
    segment_columns = _SEGMENT if any(row.record.segment for row in rows) else ()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *segment_columns, *(_LABEL + column for column in labels)])
    for row in rows:
        record = row.record
        facts: list[Any] = [record.video_id, record.path, row.size, record.group, record.split]
        facts += (record.segment or ("", "")) if segment_columns else ()
        writer.writerow(
            ["" if value is None else value for value in facts] + [record.labels.get(c, "") for c in labels]
        )
    write_text(file, text.getvalue())


def read_videos_of(run: Path, name: str = VIDEOS) -> list[KeptVideo] | None:
    """The table of a run; `None` if the run has none.

    Raises:
        RunError: the table is damaged.
    """
    file = run / name
    if not file.exists():
        return None
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            labels = [column for column in reader.fieldnames or [] if column.startswith(_LABEL)]
            return [
                KeptVideo(
                    VideoRecord(
                        row["path"],
                        row["video_id"],
                        {column.removeprefix(_LABEL): row[column] for column in labels if row[column]},
                        row["split"] or None,
                        row["group"] or None,
                        segment=(float(row["start"]), float(row["end"])) if row.get("start") else None,
                    ),
                    int(row["bytes"]) if row["bytes"] else None,
                )
                for row in reader
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(
            f"{file} is damaged ({error}). Restore it: it says which videos the run was trained on."
        ) from error


def size_of(record: VideoRecord) -> int | None:
    """Bytes of a video's file, or of its record in a prepared set; `None` if unknown."""
    if record.stored:
        return record.stored.size
    if is_remote(record.path):
        return None
    return video_bytes(record.path)


def videos_before(init_from: str | None) -> list[KeptVideo]:
    """The training videos of the run that `init_from` names, and of the runs before it. Empty if they are unknown."""
    if not init_from:
        return []
    path = Path(init_from)
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent]  # RUN, or RUN/checkpoints/FILE
    run = next((folder for folder in folders if (folder / VIDEOS).exists()), None)
    return _trained_on(run) if run else []


def own_videos(run: Path, experiment: Experiment, progress: Callable[[int, int], None] | None = None) -> VideoSet:
    """The run's videos that still exist, with the split that the run was trained with.

    Args:
        run: the run directory.
        experiment: the experiment of the run, or a copy with another seed or with other settings of `evaluate`.
        progress: called with (videos rendered, total videos) while moving shapes are rendered.

    Raises:
        ConfigError: a key is changed that would draw another split.
        DataError: the videos cannot be read.
    """
    kept = read_videos_of(run)
    if kept is None:
        found = load_videos(experiment, progress)
        note = f"{run} keeps no table of its videos ({VIDEOS}): their split was drawn anew from the data as it is now"
        return VideoSet(found.records, [*found.notes, note])
    own = load_experiment(run / "config.yaml")
    for key in _SPLIT_KEYS:
        before, now = getattr(own.data, key), getattr(experiment.data, key)
        if now != before and not (key in _RESET and now == _RESET[key]):
            raise ConfigError(
                f"data.{key}: {run} keeps the split that it was trained with ({VIDEOS}), so this key cannot be changed "
                f"from {before} to {now}. Leave it out, or evaluate on other videos with --data."
            )
    # Every video is read, with any split: the kept split replaces it.
    data = own.data.model_copy(update={"limit": None, "limit_per_class": None, "holdout": 0.0})
    found = load_videos(own.model_copy(update={"data": data}), progress)
    by_id = {record.video_id: record for record in found.records}
    records = [
        replace(by_id[row.record.video_id], split=row.record.split, group=row.record.group)
        for row in kept
        if row.record.video_id in by_id
    ]
    notes = list(found.notes)
    missing = [row.record.video_id for row in kept if row.record.video_id not in by_id]
    if missing:
        notes.append(f"videos of the run that no longer exist are left out: {len(missing)} ({_examples(missing)})")
    new = sorted(by_id.keys() - {row.record.video_id for row in kept})
    if new and not (own.data.limit or own.data.limit_per_class):
        notes.append(f"videos that are new since the run began are left out: {len(new)} ({_examples(new)})")
    return VideoSet(records, notes)


def require_same_course(run: Path, experiment: Experiment, records: Sequence[VideoRecord]) -> None:
    """Refuse to resume a run with another config, or with other training videos, than it was started with.

    A run without a table or a copy of its config (version 0.1.0) is not checked.

    Raises:
        ConfigError: a key of `config.yaml` was edited that changes the course of training.
        RunError: training videos were removed, added or replaced.
    """
    restart = f"or start a new run from its weights: hdc-keras pretrain --init-from {run}"
    if (run / STARTED_CONFIG).exists():
        before, now = _flat(load_experiment(run / STARTED_CONFIG)), _flat(experiment)
        edited = [key for key in before if before[key] != now.get(key) and not _is_free(key, before[key], now.get(key))]
        if edited:
            changes = "\n  ".join(f"{key}: {before[key]} -> {now.get(key)}" for key in edited)
            raise ConfigError(
                f"{run / 'config.yaml'}: keys were edited that change the course of training, so the run cannot be "
                f"resumed:\n  {changes}\nRestore them, {restart}"
            )
    kept = read_videos_of(run)
    if kept is None:
        return
    trained = {row.record.video_id: row.size for row in kept if row.record.split == "train"}
    found = {record.video_id: size_of(record) for record in records if record.split == "train"}
    different = {
        "removed": sorted(trained.keys() - found.keys()),
        "added": sorted(found.keys() - trained.keys()),
        "of another size": [name for name, size in trained.items() if name in found and found[name] != size],
    }
    if any(different.values()):
        said = "; ".join(f"{len(ids)} {what} ({_examples(ids)})" for what, ids in different.items() if ids)
        raise RunError(
            f"the training videos of {run} have changed since it began: {said}. Restore the {len(trained)} videos in "
            f"{run / VIDEOS}, {restart}"
        )


def seen_in_pretraining(run: Path, records: Iterable[VideoRecord]) -> dict[str, int] | None:
    """How many test videos the run, or a run that it started from, was trained on.

    A video was seen if a training video has its path (prepared videos have the path of the file that they were prepared
    from), its id and its size, or its size and the same bytes at the beginning and in the middle. Of parts of one file,
    those were seen that overlap with a training video.

    Returns:
        `test_videos` (seen ones) and `of` (all of them); `None` if the run keeps no table of its videos.

    Raises:
        RunError: a table is damaged.
    """
    if read_videos_of(run) is None:
        return None
    trained = _trained_on(run)
    parts_of: dict[str, list[VideoRecord]] = {}
    for row in trained:
        parts_of.setdefault(_resolved(row.record.path), []).append(row.record)
    files = {(row.record.video_id, row.size) for row in trained if row.size is not None}
    of_size: dict[int, list[str]] = {}
    for row in trained:
        if row.size is not None:
            of_size.setdefault(row.size, []).append(row.record.path)

    @cache
    def fingerprints(size: int) -> set[str]:
        return {known for path in of_size[size] if (known := _fingerprint(path, size))}

    def is_seen(record: VideoRecord) -> bool:
        size = size_of(record)
        if parts := parts_of.get(_resolved(record.path)):
            return any(_overlap(record, other) for other in parts)
        if (record.video_id, size) in files:
            return True
        if record.stored or size is None:
            return False
        return size in of_size and _fingerprint(record.path, size) in fingerprints(size)

    test = [record for record in records if record.split == "test"]
    return {"test_videos": sum(map(is_seen, test)), "of": len(test)}


def _overlap(video: VideoRecord, other: VideoRecord) -> bool:
    """Whether two videos of one file share a moment."""
    if video.segment is None or other.segment is None:
        return True
    return video.segment[0] < other.segment[1] and other.segment[0] < video.segment[1]


def _trained_on(run: Path) -> list[KeptVideo]:
    own = [row for row in read_videos_of(run) or [] if row.record.split == "train"]
    return own + (read_videos_of(run, EARLIER_VIDEOS) or [])


def _fingerprint(path: str, size: int) -> str | None:
    """Digest of a file's bytes at the beginning and in the middle; `None` if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_video_file(path) as file:
            for place in (0, size // 2):
                file.seek(place)
                digest.update(file.read(_COMPARED_BYTES))
    except (OSError, VideoDecodeError):
        return None
    return digest.hexdigest()


def _resolved(path: str) -> str:
    return path if is_remote(path) else resolved(path)


def _flat(experiment: Experiment) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for section, content in experiment.model_dump(mode="json").items():
        values |= (
            {f"{section}.{key}": value for key, value in content.items()}
            if isinstance(content, dict)
            else {section: content}
        )
    return values


def _is_free(key: str, before: Any, now: Any) -> bool:
    # The learning rate is 0 after the last step that a run was started with, so it may end earlier but not later.
    ends_earlier = key in ("train.epochs", "train.steps") and None not in (before, now) and now < before
    return key in _FREE_KEYS or key.startswith("evaluate.") or ends_earlier


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
