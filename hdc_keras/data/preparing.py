"""`hdc-keras prepare`: decode every video once, in separate processes, and store its frames as JPEG in shards.

If decoding a video hangs, crashes or needs too much memory, only that video fails, and the report gives the reason. The
content of a shard depends only on the list of videos. Parts prepared on several machines are therefore identical to a
set prepared on one machine, and an interrupted job continues with the first missing shard. Several processes may work
in one folder at once: each shard is locked by the process that prepares it.
"""

import hashlib
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, TimeoutError
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hdc_keras.data.decoding import FrameSize, Segment, index_frames, stream_frames
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.remote import local_copy
from hdc_keras.data.shards import (
    SET_FILE,
    EncodedVideo,
    PreparedSet,
    index_path,
    is_prepared,
    read_frames,
    read_indexes,
    read_set,
    stored_video,
    write_shard,
)
from hdc_keras.errors import ConfigError, DataError, RunError, VideoDecodeError
from hdc_keras.files import digest, remove_leftovers, write_text
from hdc_keras.locks import exclusive, remove_dead_locks, try_exclusive

REPORT_FILE = "report.json"
# Limit on the address space of a decoding process, in bytes. Imports take about 1 GB; 8K video with 16 reference frames
# takes 2 GB.
_WORKER_MEMORY = 6_000_000_000
# Videos per process that are decoded ahead of the writer. With this many, one slow video does not stall the others.
_VIDEOS_AHEAD = 4
# Seconds between two looks at the shards that other processes are preparing.
_POLL_S = 1.0

Progress = Callable[[int, int, int], None]
# Number of its shard, the video, and its frames or the reason why it failed.
_Encoded = tuple[int, VideoRecord, EncodedVideo | str]


@dataclass(frozen=True)
class Part:
    """The shards that one of several machines prepares.

    Args:
        number: number of this part, from 1 to `of`.
        of: number of parts.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `I/N`. Raises `ConfigError`."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ConfigError(f"--part: expected I/N with I from 1 to N, as in 3/8. Received: {text}")
        return cls(int(number), int(of))

    def holds(self, shard: int) -> bool:
        """Whether a shard belongs to this part."""
        return shard % self.of == self.number - 1


def prepare(
    records: Sequence[VideoRecord],
    folder: Path,
    *,
    size: FrameSize = (128, 171),
    quality: int = 90,
    fps: float | None = None,
    videos_per_shard: int = 64,
    part: Part = Part(),
    processes: int | None = None,
    time_limit: float = 600.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the missing shards of a set.

    Several processes may prepare the same shards at once. Each shard is prepared by one of them; if that process is
    killed, another one takes over.

    Args:
        records: all videos of the set, in any order.
        folder: where to write shards, `prepared.json` and `report.json`.
        size: (height, width) of the stored frames in pixels, preferably the size used for training; or the maximum
            length of the shorter side, which keeps aspect ratios.
        quality: JPEG quality, 1 to 95.
        fps: frames per second; `None` keeps every frame.
        videos_per_shard: videos assigned to each shard, which leaves out the ones that fail.
        part: which shards to write.
        processes: number of videos decoded in parallel; one per core when `None`.
        time_limit: seconds after which decoding a video is stopped and the video counts as failed.
        progress: called with (videos done, total videos of this part, videos failed).

    Returns:
        The report on all shards that exist, which is also written to `report.json`.

    Raises:
        DataError: `folder` contains a set of other videos, or one prepared with other options.
        ConfigError: TensorFlow is not installed.
        RunError: `folder` cannot be created, or a lock cannot be written there.
    """
    if find_spec("tensorflow") is None:
        raise ConfigError(
            "`prepare` writes TFRecords with TensorFlow, which is not installed. Prepare the videos in an environment "
            "with TensorFlow; reading prepared videos does not need it."
        )
    records = sorted(records, key=lambda record: record.video_id)
    prepared = PreparedSet(len(records), videos_per_shard, size, quality, fps, _digest(records))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}). Choose another with --out.") from error
    with exclusive(folder / SET_FILE):
        remove_leftovers(folder / SET_FILE)
        _claim(folder, prepared)
    shards = {
        number: records[number * videos_per_shard : (number + 1) * videos_per_shard]
        for number in range(prepared.shards)
        if part.holds(number)
    }
    _write_missing(shards, folder, prepared, processes, time_limit, progress)
    report = write_report(folder)
    remove_dead_locks(folder, {SET_FILE, REPORT_FILE, *map(prepared.shard_name, shards)})
    return report


def _write_missing(
    shards: Mapping[int, Sequence[VideoRecord]],
    folder: Path,
    prepared: PreparedSet,
    processes: int | None,
    time_limit: float,
    progress: Progress | None,
) -> None:
    """Write the missing shards that no other process is preparing, and wait for those that another one is."""
    total = sum(map(len, shards.values()))
    finished = failed = 0
    missing = dict(shards)
    locks: dict[int, ExitStack] = {}

    def show(videos: int = 0, failures: int = 0) -> None:
        nonlocal finished, failed
        finished, failed = finished + videos, failed + failures
        if progress:
            progress(finished, total, failed)

    def count_finished() -> None:
        done = read_indexes(folder, prepared, missing)
        show(sum(len(missing.pop(number)) for number in done), sum(len(index["failed"]) for index in done.values()))

    def locked_videos() -> Iterator[tuple[int, VideoRecord]]:
        """The videos of each missing shard, which is locked when the first of them is needed."""
        for number, videos in list(missing.items()):
            shard = folder / prepared.shard_name(number)
            with ExitStack() as lock:
                if not lock.enter_context(try_exclusive(shard)) or Path(index_path(str(shard))).exists():
                    continue
                locks[number] = lock.pop_all()
            for video in videos:
                yield number, video

    def with_progress(encoded: Iterable[_Encoded]) -> Iterator[tuple[VideoRecord, EncodedVideo | str]]:
        for _, record, outcome in encoded:
            yield record, outcome
            show(1, isinstance(outcome, str))

    count_finished()
    while missing:
        before = len(missing)
        at_once = min(processes or os.cpu_count() or 1, total - finished)
        encoded = _encode_all(locked_videos(), prepared.size, prepared.quality, prepared.fps, at_once, time_limit)
        try:
            for number, of_shard in groupby(encoded, key=lambda one: one[0]):
                write_shard(folder / prepared.shard_name(number), with_progress(of_shard))
                del missing[number]
                locks.pop(number).close()
        finally:
            encoded.close()
            for lock in locks.values():
                lock.close()
        if missing:
            count_finished()
        if len(missing) == before:
            time.sleep(_POLL_S)


def write_report(folder: Path) -> dict[str, Any]:
    """Write a summary of the shards that exist to `report.json`, and return it."""
    with exclusive(folder / REPORT_FILE):
        remove_leftovers(folder / REPORT_FILE)
        return _write_report(folder)


def _write_report(folder: Path) -> dict[str, Any]:
    prepared = read_set(folder)
    indexes = read_indexes(folder, prepared)
    videos = [video for index in indexes.values() for video in index["videos"]]
    failed = [failure for index in indexes.values() for failure in index["failed"]]
    report = {
        "videos_asked": prepared.videos,
        "videos_read": len(videos),
        "videos_failed": len(failed),
        "videos_to_come": prepared.videos - len(videos) - len(failed),
        "shards": len(indexes),
        "shards_in_all": prepared.shards,
        "frames": sum(video["frames"] for video in videos),
        "bytes": sum(index["bytes"] for index in indexes.values()),
        "failed": [{key: failure[key] for key in ("path", "video_id", "cause")} for failure in failed],
    }
    write_text(folder / REPORT_FILE, json.dumps(report, indent=1))
    return report


def verify(folder: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Read a prepared set back and check it.

    Compares the checksum of every shard, finds every frame of every video, and decodes each video's first and last
    frame.

    Args:
        folder: the set.
        progress: called with (shards done, total shards).

    Returns:
        The problems found, one line each.
    """
    prepared = read_set(folder)
    indexes = read_indexes(folder, prepared)
    problems = []
    for number in range(prepared.shards):
        shard = folder / prepared.shard_name(number)
        if number not in indexes:
            problems.append(f"{shard.name}: is missing")
        elif not shard.exists():
            problems.append(f"{shard.name}: is missing, but its index exists")
        else:
            problems += _check_shard(shard, indexes[number])
        if progress:
            progress(number + 1, prepared.shards)
    return problems


def _check_shard(shard: Path, index: dict[str, Any]) -> list[str]:
    if digest(shard) != index["sha256"]:
        advice = f"Remove {index_path(shard.name)} and prepare again"
        return [f"{shard.name}: its checksum differs from the one in its index. {advice}"]
    problems = []
    for video in index["videos"]:
        try:
            size = read_frames(stored_video(str(shard), video), np.array([0, video["frames"] - 1])).shape[1:3]
            expected = video["height"], video["width"]
            if size != expected:
                problems.append(
                    f"{shard.name}: {video['video_id']} has frames of {size}, but its index says {expected}"
                )
        except VideoDecodeError as error:
            problems.append(f"{shard.name}: {video['video_id']}: {error.cause}")
    return problems


def _digest(records: Sequence[VideoRecord]) -> str:
    """SHA-256 of the ids, labels, splits, groups and segments of the videos, which are sorted by id."""
    ids = [record.video_id for record in records]
    repeated = [one for one, following in pairwise(ids) if one == following]
    if repeated:
        raise DataError(
            f"{len(repeated)} videos repeat the id of another video, such as `{repeated[0]}`. Ids must be unique."
        )
    facts = [[r.video_id, dict(r.labels), r.split, r.group] + ([r.segment] if r.segment else []) for r in records]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _claim(folder: Path, prepared: PreparedSet) -> None:
    """Write the set's description to `folder`, or check that it equals the description already there."""
    if not is_prepared(folder):
        write_text(folder / SET_FILE, json.dumps(asdict(prepared), indent=1))
        return
    existing = asdict(read_set(folder))
    changed = [
        f"{key}: {existing[key]} before, {value} now"
        for key, value in asdict(prepared).items()
        if existing[key] != value
    ]
    if changed:
        raise DataError(
            f"{folder} already contains a set that was prepared with other options or from other videos:\n  "
            + "\n  ".join(changed)
            + "\nChoose another --out, or remove the folder."
        )


def _encode_all(
    videos: Iterator[tuple[int, VideoRecord]],
    size: FrameSize,
    quality: int,
    fps: float | None,
    processes: int,
    time_limit: float,
) -> Generator[_Encoded, None, None]:
    """Yield the frames of each video, or the reason why it failed, in order. Processes decode ahead of the consumer.

    Args:
        videos: each with the number of its shard, read as far ahead as videos are decoded ahead.
        size: as in `prepare`.
        quality: as in `prepare`.
        fps: as in `prepare`.
        processes: number of videos decoded in parallel.
        time_limit: as in `prepare`.
    """
    from pebble import ProcessPool

    first = next(videos, None)  # no process is started if there is nothing to decode
    if first is None:
        return
    # Spawned, because a fork of a process that has used TensorFlow may hang.
    context = multiprocessing.get_context("spawn")
    pending: deque[tuple[int, VideoRecord, Future]] = deque()
    # Copies of remote videos go to a folder that this process removes: a process that is killed cannot remove them.
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPool(max_workers=processes, initializer=_start_worker, initargs=[folder], context=context) as pool,
    ):
        try:
            for number, record in chain([first], videos):
                task = [record.path, size, quality, fps, record.segment]
                pending.append((number, record, pool.schedule(encode_video, args=task, timeout=time_limit)))
                if len(pending) >= _VIDEOS_AHEAD * processes:
                    yield _oldest(pending, time_limit)
            while pending:
                yield _oldest(pending, time_limit)
        finally:
            if pending:  # The consumer stopped early.
                pool.stop()


def _oldest(pending: deque[tuple[int, VideoRecord, Future]], time_limit: float) -> _Encoded:
    number, record, future = pending.popleft()
    return number, record, _outcome(future, time_limit)


def _outcome(future: Future, time_limit: float) -> EncodedVideo | str:
    from pebble import ProcessExpired

    try:
        return future.result()
    except TimeoutError:
        return f"not decoded within {time_limit:g} seconds"
    except (ProcessExpired, CancelledError) as error:
        return f"its decoding process ended with exit code {getattr(error, 'exitcode', None)}"


def encode_video(
    path: str, size: FrameSize, quality: int, fps: float | None, segment: Segment | None = None
) -> EncodedVideo | str:
    """Decode a video and encode its frames as JPEG. Returns the reason, as a string, if that fails."""
    frames = []
    stored_size = (0, 0)
    try:
        with local_copy(path) as file:
            for pixels in stream_frames(file, size, fps, segment):
                buffer = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality)
                frames.append(buffer.getvalue())
                stored_size = pixels.shape[:2]
            rate = fps or index_frames(file).rate
    except VideoDecodeError as error:
        return error.cause
    except MemoryError:
        return "needs more memory than a decoding process is allowed"
    except Exception as error:  # Probably a bug in hdc-keras. Only this video fails, and the report shows the error.
        return f"unexpected error, {type(error).__name__}: {error}"
    return EncodedVideo(frames, stored_size, rate)


def _start_worker(temporary: str) -> None:
    tempfile.tempdir = temporary
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_MEMORY, _WORKER_MEMORY))
