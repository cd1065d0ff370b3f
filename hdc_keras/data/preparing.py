"""`hdc-keras prepare`: decode every video once, into shards of JPEG frames, in processes apart.

A process that hangs, crashes or asks for too much memory costs one video, which is named with the reason. What a shard
holds depends on the list of videos alone, so that parts made on many machines are together the same as a whole made on
one, and work that was interrupted goes on at the first shard that is not there.
"""

import hashlib
import io
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, TimeoutError
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hdc_keras.data.decoding import FrameSize, index_frames, stream_frames
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
    write_atomically,
    write_shard,
)
from hdc_keras.errors import ConfigError, DataError, VideoDecodeError

REPORT_FILE = "report.json"
# Address space of a decoding process. Imports take about 1 GB of it; 8K video with 16 reference frames takes 2.
_WORKER_MEMORY = 6_000_000_000
# Videos decoded ahead of the writer, for each process: enough that a slow one does not stop the others.
_AHEAD = 4

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Part:
    """One of several machines' share of the shards.

    Args:
        number: which, from 1.
        of: how many there are.
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
        """Whether a shard is in it."""
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
    """Write the shards of a set that are not there yet.

    Args:
        records: the set. Their order does not matter.
        folder: where shards, `prepared.json` and `report.json` go.
        size: (height, width) of the stored frames, best the one that is trained on; or, to keep the videos' shapes, the
            greatest length of the shorter side.
        quality: of the JPEGs, 1 to 95.
        fps: frames a second; every frame is kept when `None`.
        videos_per_shard: videos asked for in each shard; those that fail leave it smaller.
        part: which shards to write.
        processes: videos decoded at once; one a core when `None`.
        time_limit: seconds after which a video is given up.
        progress: called with (videos done, videos of this part, videos failed).

    Returns:
        The report, of all shards that are there; also in `report.json`.

    Raises:
        DataError: `folder` holds another set, or the same made otherwise.
        ConfigError: TensorFlow is not installed.
    """
    if find_spec("tensorflow") is None:
        raise ConfigError(
            "`prepare` writes TFRecords with TensorFlow, which is not installed. Reading them needs none."
        )
    records = sorted(records, key=lambda record: record.video_id)
    prepared = PreparedSet(len(records), videos_per_shard, size, quality, fps, _digest(records))
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, prepared)
    done = read_indexes(folder, prepared)
    shards = {
        number: records[number * videos_per_shard : (number + 1) * videos_per_shard]
        for number in range(prepared.shards)
        if part.holds(number)
    }
    finished = sum(len(videos) for number, videos in shards.items() if number in done)
    failed = sum(len(done[number]["failed"]) for number in shards if number in done)
    todo = [(number, videos) for number, videos in shards.items() if number not in done]
    total = sum(map(len, shards.values()))
    if progress:
        progress(finished, total, failed)
    encoded = _encode_all([video for _, videos in todo for video in videos], size, quality, fps, processes, time_limit)

    def counted(videos: Sequence[VideoRecord]) -> Iterator[tuple[VideoRecord, EncodedVideo | str]]:
        nonlocal finished, failed
        for record, outcome in zip(videos, encoded, strict=False):
            yield record, outcome
            finished += 1
            failed += isinstance(outcome, str)
            if progress:
                progress(finished, total, failed)

    try:
        for number, videos in todo:
            write_shard(folder / prepared.shard_name(number), counted(videos))
    finally:
        encoded.close()
    return write_report(folder)


def write_report(folder: Path) -> dict[str, Any]:
    """Sum up the shards that are there into `report.json`."""
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
    write_atomically(folder / REPORT_FILE, json.dumps(report, indent=1))
    return report


def verify(folder: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Read a prepared set back.

    Every shard's checksum is compared, and of every video all frames are found and the first and last one decoded.

    Args:
        folder: the set.
        progress: called with (shards done, in all).

    Returns:
        What is wrong, a line each.
    """
    prepared = read_set(folder)
    indexes = read_indexes(folder, prepared)
    problems = []
    for number in range(prepared.shards):
        shard = folder / prepared.shard_name(number)
        if number not in indexes:
            problems.append(f"{shard.name}: is missing")
        elif not shard.exists():
            problems.append(f"{shard.name}: is missing, though its index is there")
        else:
            problems += _check_shard(shard, indexes[number])
        if progress:
            progress(number + 1, prepared.shards)
    return problems


def _check_shard(shard: Path, index: dict[str, Any]) -> list[str]:
    with shard.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != index["sha256"]:
            advice = f"Remove {index_path(shard.name)} and prepare again"
            return [f"{shard.name}: its checksum is not that of its index. {advice}"]
    problems = []
    for video in index["videos"]:
        try:
            shape = read_frames(stored_video(str(shard), video), np.array([0, video["frames"] - 1])).shape[1:3]
            if shape != (video["height"], video["width"]):
                problems.append(f"{shard.name}: {video['video_id']} is {shape}, not as its index says")
        except VideoDecodeError as error:
            problems.append(f"{shard.name}: {video['video_id']}: {error.cause}")
    return problems


def _digest(records: Sequence[VideoRecord]) -> str:
    ids = [record.video_id for record in records]
    repeated = [one for one, following in pairwise(ids) if one == following]
    if repeated:
        raise DataError(f"{len(repeated)} videos share an id, such as `{repeated[0]}`; each needs one of its own.")
    facts = [[r.video_id, dict(r.labels), r.split, r.group] for r in records]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _claim(folder: Path, prepared: PreparedSet) -> None:
    """Say what `folder` holds, or check that it holds just this."""
    if not is_prepared(folder):
        write_atomically(folder / SET_FILE, json.dumps(asdict(prepared), indent=1))
        return
    there = asdict(read_set(folder))
    changed = [
        f"{key}: {there[key]} there, {value} now" for key, value in asdict(prepared).items() if there[key] != value
    ]
    if changed:
        raise DataError(
            f"{folder} holds a set that was prepared otherwise, or of other videos:\n  "
            + "\n  ".join(changed)
            + "\nGive another --out, or remove the folder."
        )


def _encode_all(
    records: Sequence[VideoRecord],
    size: FrameSize,
    quality: int,
    fps: float | None,
    processes: int | None,
    time_limit: float,
) -> Generator[EncodedVideo | str, None, None]:
    """Yield each video's frames, or why there are none, in order; processes decode ahead of the reader."""
    from pebble import ProcessPool

    if not records:
        return
    processes = min(processes or os.cpu_count() or 1, len(records))
    # Started afresh, since a fork of a process that has run TensorFlow may hang.
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future] = deque()
    with ProcessPool(max_workers=processes, initializer=_limit_memory, context=context) as pool:
        try:
            for record in records:
                task = [record.path, size, quality, fps]
                waiting.append(pool.schedule(encode_video, args=task, timeout=time_limit))
                if len(waiting) >= _AHEAD * processes:
                    yield _outcome(waiting.popleft(), time_limit)
            while waiting:
                yield _outcome(waiting.popleft(), time_limit)
        finally:
            if waiting:  # the reader gave up
                pool.stop()


def _outcome(future: Future, time_limit: float) -> EncodedVideo | str:
    from pebble import ProcessExpired

    try:
        return future.result()
    except TimeoutError:
        return f"not decoded within {time_limit:g} seconds"
    except (ProcessExpired, CancelledError) as error:
        return f"its decoding process ended with exit code {getattr(error, 'exitcode', None)}"


def encode_video(path: str, size: FrameSize, quality: int, fps: float | None) -> EncodedVideo | str:
    """Decode a video and encode its frames as JPEG, or say why it cannot be decoded."""
    frames = []
    stored_size = (0, 0)
    try:
        with local_copy(path) as file:
            for pixels in stream_frames(file, size, fps):
                buffer = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality)
                frames.append(buffer.getvalue())
                stored_size = pixels.shape[:2]
            rate = fps or index_frames(file).rate
    except VideoDecodeError as error:
        return error.cause
    except MemoryError:
        return "needs more memory than a decoding process may have"
    except Exception as error:  # a fault of ours costs one video too, and says so
        return f"an error that hdc-keras does not know, {type(error).__name__}: {error}"
    return EncodedVideo(frames, stored_size, rate)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_MEMORY, _WORKER_MEMORY))
