"""`hdc-keras prepare`: decode every video once, in separate processes, and store its frames as JPEG in shards.

If decoding a video hangs, crashes or needs too much memory, only that video fails, and the report gives the reason. The
content of a shard depends only on the list of videos. Parts prepared on several machines are therefore identical to a
set prepared on one machine, and an interrupted job continues with the first missing shard. Several processes may work
in one folder at once: each shard is locked by the process that prepares it. An object store has no locks; there,
processes write the same bytes again unless `Part` divides the shards among them.
"""

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hdc_keras.data.decoding import FrameSize
from hdc_keras.data.encoding import Decoders
from hdc_keras.data.records import VideoRecord, sample_files
from hdc_keras.data.remote import is_remote
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
from hdc_keras.engines.here import Here
from hdc_keras.engines.work import Engine, Report, RunPart, Tally
from hdc_keras.errors import ConfigError, DataError, RunError, VideoDecodeError
from hdc_keras.files import digest
from hdc_keras.locks import remove_dead_locks

REPORT_FILE = "report.json"
# URLs among which one is looked for that can be reached (our choice).
_URLS_TRIED = 8
_SAME_STORE = (
    "All nodes need the same credentials, endpoint and folders as this command. Environment variables are not passed "
    "on: set them for `ray start`."
)

Progress = Callable[[int, int, int], None]


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
    engine: Engine | None = None,
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
        processes: number of videos decoded in parallel; one per core when `None`, of the whole cluster if there is one.
        time_limit: seconds after which decoding a video is stopped and the video counts as failed.
        progress: called with (videos done, total videos of this part, videos failed).
        engine: the cluster that writes the shards, from `hdc_keras.engines.engine_on`; this process when `None`.

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
    make_folder(str(folder))
    folder = str(folder).rstrip("/")
    set_file, set_index = (f"{folder}/{name}" for name in (SET_FILE, SET_INDEX))
    with exclusive(set_file):
        remove_leftovers(set_file)
        _claim(folder, prepared)
    shards = {
        number: records[number * videos_per_shard : (number + 1) * videos_per_shard]
        for number in range(prepared.shards)
        if part.holds(number)
    }
    with _writing(set_index), exclusive(f"{folder}/{REPORT_FILE}"):
        if len(complete_shards(folder, prepared, shards)) < len(shards):
            remove(set_index)  # Shards whose index was deleted may get other videos now.
    _write_missing(shards, folder, prepared, processes, time_limit, progress, engine)
    report = write_report(folder)
    if not is_remote(folder):
        remove_dead_locks(Path(folder), {SET_FILE, REPORT_FILE, *map(prepared.shard_name, shards)})
    return report


@dataclass(frozen=True)
class _ShardWriting:
    """Writes shards; a part is a shard and contains its videos. See `Work`."""

    target: str
    prepared: PreparedSet
    processes: int
    time_limit: float
    shards: int
    files: Sequence[str]
    url: str | None
    runs_network = False

    @property
    def folder(self) -> Path | None:
        """The shared folder; `None` for a store, which all machines reach in the same way."""
        return None if is_remote(self.target) else Path(self.target)

    @contextmanager
    def open(self) -> Iterator[RunPart[Sequence[VideoRecord]]]:
        if is_remote(self.target) and read_set(self.target) != self.prepared:
            raise DataError(f"{self.target}/{SET_FILE}: {socket.gethostname()} sees another set there. {_SAME_STORE}")
        if self.url and size_of(self.url) is None:
            raise DataError(f"{self.url}: {socket.gethostname()} cannot see it. {_SAME_STORE}")
        with Decoders(self.processes, self.time_limit, self.shards) as decoders:
            yield partial(self._write, decoders)

    def _write(self, decoders: Decoders, number: int, videos: Sequence[VideoRecord], report: Report) -> bool:
        shard = f"{self.target}/{self.prepared.shard_name(number)}"
        with _writing(shard), try_exclusive(shard) as is_mine:
            complete = complete_shards(self.target, self.prepared, [number])
            index = dict(each_index(self.target, self.prepared, complete)).get(number)
            if index is None and is_mine:
                options = self.prepared.size, self.prepared.quality, self.prepared.fps
                with closing(decoders.encode(videos, *options)) as encoded:
                    index = write_shard(shard, _reported(encoded, report))
        if index is None:
            return False
        decoders.shard_finished()
        report(len(videos), len(index["failed"]))
        return True


def _reported(
    encoded: Iterable[tuple[VideoRecord, EncodedVideo | str]], report: Report
) -> Iterator[tuple[VideoRecord, EncodedVideo | str]]:
    failed = 0
    for done, (record, outcome) in enumerate(encoded, 1):
        yield record, outcome
        failed += isinstance(outcome, str)
        report(done, failed)


def _write_missing(
    shards: Mapping[int, Sequence[VideoRecord]],
    folder: str,
    prepared: PreparedSet,
    processes: int | None,
    time_limit: float,
    progress: Progress | None,
    engine: Engine | None,
) -> None:
    """Write the missing shards that no other process is preparing, and wait for those that another one is."""
    total = sum(map(len, shards.values()))
    missing, failed_before = dict(shards), 0
    for number, index in each_index(folder, prepared, complete_shards(folder, prepared, shards)):
        del missing[number]
        failed_before += len(index["failed"])

    def show(done: int, failed: int) -> None:
        if progress:
            progress(done, total, failed)

    remaining = sum(map(len, missing.values()))
    tally = Tally(show, total - remaining, failed_before)
    # In a cluster, every worker writes one shard at a time and decodes one video at a time.
    here = 1 if engine else min(processes or os.cpu_count() or 1, remaining)
    at_once = processes if engine else min(here, len(missing))
    files = sample_files(chain(*shards.values()))
    url = _reachable_url(shards) if engine else None
    work = _ShardWriting(_absolute(folder), prepared, here, time_limit, len(missing), files, url)

    def finished(number: int) -> None:
        if engine and not complete_shards(folder, prepared, [number]):
            name = f"{folder}/{prepared.shard_name(number)}"
            raise RunError(f"a worker has written {name}, but it is not there. {_SAME_STORE}")

    (engine or Here()).run(work, missing, at_once, tally.report, finished)


def _reachable_url(shards: Mapping[int, Sequence[VideoRecord]]) -> str | None:
    """The URL of a video that this machine can reach, for others to look for; `None` if none of the first few is."""
    urls = (record.path for videos in shards.values() for record in videos if is_remote(record.path))
    return next((url for url in islice(urls, _URLS_TRIED) if _is_reachable(url)), None)


def _is_reachable(url: str) -> bool:
    try:
        return size_of(url) is not None
    except DataError:
        return False


def _absolute(folder: str) -> str:
    return folder if is_remote(folder) else str(Path(folder).absolute())


def write_report(folder: str) -> dict[str, Any]:
    """Write a summary of the shards that exist to `report.json`, and return it. If all exist, write the set's index."""
    report_file, set_index = (f"{folder}/{name}" for name in (REPORT_FILE, SET_INDEX))
    with _writing(report_file), exclusive(report_file):
        remove_leftovers(report_file)
        remove_leftovers(set_index)
        prepared = read_set(folder)
        complete: list[int] | None = None
        # A store has no locks: another process may complete a shard while its indexes are read.
        while complete != (found := complete_shards(folder, prepared, range(prepared.shards))):
            complete = found
            if len(complete) < prepared.shards:
                report = _summary(prepared, each_index(folder, prepared, complete))
            else:
                with replacing(set_index) as file, index_writer(file, prepared.listing) as add:
                    report = _summary(prepared, each_index(folder, prepared, complete), add)
            write_text(report_file, json.dumps(report, indent=1))
    return report


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Name the file if it cannot be written, as on a full disk."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}). Finished shards are kept: run the command again to "
            "continue."
        ) from error


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
        "other videos, or others of their labels, splits or groups"
        if key == "listing"
        else f"{key}: {existing[key]} before, {value} now"
        for key, value in asdict(prepared).items()
        if existing[key] != value
    ]
    if changed:
        raise DataError(
            f"{folder} already contains a set that was prepared with other options or from other videos:\n  "
            + "\n  ".join(changed)
            + "\nChoose another --out, or remove the folder."
        )
