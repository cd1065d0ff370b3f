"""`hdc-keras prepare`: decode every video once, in separate processes, and store its frames as JPEG in shards.

If decoding a video hangs, crashes or needs too much memory, only that video fails, and the report gives the reason. The
content of a shard depends only on the list of videos. Parts prepared on several machines are therefore identical to a
set prepared on one machine, and an interrupted job continues with the first missing shard. Several processes may work
in one folder at once: each shard is locked by the process that prepares it. An object store has no locks; there,
processes write the same bytes again unless `Part` divides the shards among them.
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
from hdc_keras.data.remote import is_remote, local_copy
from hdc_keras.data.set_index import SET_INDEX, index_writer, same_index
from hdc_keras.data.shards import (
    SET_FILE,
    EncodedVideo,
    PreparedSet,
    complete_shards,
    each_index,
    index_path,
    is_prepared,
    needed_jpegs,
    read_frames,
    read_set,
    stored_video,
    write_shard,
)
from hdc_keras.data.storage import (
    exclusive,
    local_file,
    make_folder,
    read_bytes,
    remove,
    remove_leftovers,
    replacing,
    size_of,
    try_exclusive,
    write_text,
)
from hdc_keras.errors import ConfigError, DataError, VideoDecodeError
from hdc_keras.files import digest
from hdc_keras.locks import remove_dead_locks

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
    folder: str | Path,
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
    """Write the missing shards of a set, and its index when all of them exist.

    Several processes may prepare the same shards in one folder at once. Each shard is prepared by one of them; if that
    process is killed, another one takes over.

    Args:
        records: all videos of the set, in any order.
        folder: where to write shards, `prepared.json`, `report.json` and `index.parquet`: a folder, or the URL of one
            in an object store.
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
        RunError: `folder` cannot be created or written, or a lock cannot be written there.
    """
    if find_spec("tensorflow") is None:
        raise ConfigError(
            "`prepare` writes TFRecords with TensorFlow, which is not installed. Prepare the videos in an environment "
            "with TensorFlow; reading prepared videos does not need it."
        )
    records = sorted(records, key=lambda record: record.video_id)
    prepared = PreparedSet(len(records), videos_per_shard, size, quality, fps, _digest(records))
    folder = str(folder).rstrip("/")
    make_folder(folder)
    set_file, set_index = (f"{folder}/{name}" for name in (SET_FILE, SET_INDEX))
    with exclusive(set_file):
        remove_leftovers(set_file)
        _claim(folder, prepared)
    shards = {
        number: records[number * videos_per_shard : (number + 1) * videos_per_shard]
        for number in range(prepared.shards)
        if part.holds(number)
    }
    if len(complete_shards(folder, prepared, shards)) < len(shards):
        remove(set_index)  # Shards whose index was deleted may get other videos now.
    _write_missing(shards, folder, prepared, processes, time_limit, progress)
    report = write_report(folder)
    if not is_remote(folder):
        remove_dead_locks(Path(folder), {SET_FILE, REPORT_FILE, *map(prepared.shard_name, shards)})
    return report


def _write_missing(
    shards: Mapping[int, Sequence[VideoRecord]],
    folder: str,
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
        for number, index in each_index(folder, prepared, complete_shards(folder, prepared, missing)):
            show(len(missing.pop(number)), len(index["failed"]))

    def locked_videos() -> Iterator[tuple[int, VideoRecord]]:
        """The videos of each missing shard, which is locked when the first of them is needed."""
        for number, videos in list(missing.items()):
            shard = f"{folder}/{prepared.shard_name(number)}"
            with ExitStack() as lock:
                if not lock.enter_context(try_exclusive(shard)) or size_of(index_path(shard)) is not None:
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
                write_shard(f"{folder}/{prepared.shard_name(number)}", with_progress(of_shard))
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


def write_report(folder: str) -> dict[str, Any]:
    """Write a summary of the shards that exist to `report.json`, and return it. If all exist, write the set's index."""
    report_file, set_index = (f"{folder}/{name}" for name in (REPORT_FILE, SET_INDEX))
    with exclusive(report_file):
        remove_leftovers(report_file)
        remove_leftovers(set_index)
        prepared = read_set(folder)
        complete = complete_shards(folder, prepared, range(prepared.shards))
        if len(complete) < prepared.shards:
            report = _summary(prepared, each_index(folder, prepared, complete))
        else:
            with replacing(set_index) as file, index_writer(file, prepared.listing) as add:
                report = _summary(prepared, each_index(folder, prepared, complete), add)
        write_text(report_file, json.dumps(report, indent=1))
    return report


def _summary(
    prepared: PreparedSet,
    indexes: Iterable[tuple[int, dict[str, Any]]],
    add: Callable[[int, dict[str, Any]], None] = lambda number, index: None,
) -> dict[str, Any]:
    """The content of `report.json`. Every index is passed to `add` too."""
    shards = videos = frames = size = 0
    failed = []
    for number, index in indexes:
        add(number, index)
        shards += 1
        videos += len(index["videos"])
        frames += sum(video["frames"] for video in index["videos"])
        size += index["bytes"]
        failed += [{key: failure[key] for key in ("path", "video_id", "cause")} for failure in index["failed"]]
    return {
        "videos_asked": prepared.videos,
        "videos_read": videos,
        "videos_failed": len(failed),
        "videos_to_come": prepared.videos - videos - len(failed),
        "shards": shards,
        "shards_in_all": prepared.shards,
        "frames": frames,
        "bytes": size,
        "failed": failed,
    }


def verify(folder: str | Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Read a prepared set back and check it.

    Compares the checksum of every shard and of every frame, decodes each video's first and last frame, and compares the
    set's index with those of the shards.

    Args:
        folder: the set: a folder, or the URL of one. Each shard in a store is downloaded to a temporary file.
        progress: called with (shards done, total shards).

    Returns:
        The problems found, one line each.
    """
    folder = str(folder).rstrip("/")
    prepared = read_set(folder)
    complete = complete_shards(folder, prepared, range(prepared.shards))
    missing = {*range(prepared.shards)}.difference(complete)
    indexes = each_index(folder, prepared, complete)
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        expected = Path(temporary) / SET_INDEX
        with index_writer(expected, prepared.listing) as add:
            for number in range(prepared.shards):
                name = prepared.shard_name(number)
                if number in missing:
                    problems.append(f"{name}: is missing")
                else:
                    _, index = next(indexes)
                    add(number, index)
                    problems += _check_shard(f"{folder}/{name}", index)
                if progress:
                    progress(number + 1, prepared.shards)
        set_index = f"{folder}/{SET_INDEX}"
        is_checked = not missing and size_of(set_index) is not None
        if is_checked and not same_index(read_bytes(set_index), expected.read_bytes()):
            problems.append(f"{SET_INDEX}: differs from the indexes of the shards. Remove it and prepare again")
    return problems


def _check_shard(path: str, index: dict[str, Any]) -> list[str]:
    name = path.rpartition("/")[2]
    if size_of(path) is None:
        return [f"{name}: is missing, but its index exists"]
    with local_file(path) as shard:
        return _check_records(shard, index)


def _check_records(shard: Path, index: dict[str, Any]) -> list[str]:
    if digest(shard) != index["sha256"]:
        advice = f"Remove {index_path(shard.name)} and prepare again"
        return [f"{shard.name}: its checksum differs from the one in its index. {advice}"]
    problems = []
    for video in index["videos"]:
        stored = stored_video(str(shard), video)
        try:
            needed_jpegs(stored, np.arange(stored.frames))
            size = read_frames(stored, np.array([0, stored.frames - 1])).shape[1:3]
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


def _claim(folder: str, prepared: PreparedSet) -> None:
    """Write the set's description to `folder`, unless one is there, and check that it is the one that is read back."""
    if not is_prepared(folder):
        write_text(f"{folder}/{SET_FILE}", json.dumps(asdict(prepared), indent=1))
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
