"""The files inside a tar, found from its headers. Their contents are not read."""

import tarfile
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from hdc_keras.errors import VideoDecodeError

# Number of tars whose index is cached (our choice). A tar of 1,000 videos with two annotations each takes about 300 kB.
_INDEX_CACHE_SIZE = 1024
_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TarIndex:
    """Where the files of a tar lie.

    Attributes:
        path: path of the tar.
        ranges: first byte and number of bytes of each file, by its name without `./`.
        repeated: names that the tar holds more than once; the last one counts.
        is_complete: whether the tar ends with the usual mark. Without it, files may be missing.
    """

    path: str
    ranges: dict[str, tuple[int, int]]
    repeated: tuple[str, ...]
    is_complete: bool


@dataclass(frozen=True)
class _Places:
    """The content of a `TarIndex` in little memory, for many tars at once.

    Attributes:
        names: names of the files, sorted.
        ranges: (files, 2) int64, first byte and number of bytes.
    """

    names: list[str]
    ranges: np.ndarray


def range_in_tar(path: str, name: str) -> tuple[int, int]:
    """First byte and number of bytes of a file in a tar, by its plain name.

    Raises:
        VideoDecodeError: the tar holds no such file, or as in `tar_index`.
        OSError: it cannot be read.
    """
    places = _places(path)
    row = bisect_left(places.names, name)
    if row == len(places.names) or places.names[row] != name:
        raise VideoDecodeError(f"{path}::{name}", "the tar holds no file of this name")
    start, size = places.ranges[row].tolist()
    return start, size


@lru_cache(maxsize=_INDEX_CACHE_SIZE)
def _places(path: str) -> _Places:
    ranges = tar_index(path).ranges
    names = sorted(ranges)
    return _Places(names, np.array([ranges[name] for name in names], np.int64).reshape(-1, 2))


def tar_index(path: str) -> TarIndex:
    """Read the headers of a tar.

    Raises:
        VideoDecodeError: the tar is compressed, which allows no access to single videos; truncated; or no tar.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        start = file.read(8)
        kind = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), "")
        if kind:
            raise VideoDecodeError(
                path, f"is compressed ({kind}), so single videos cannot be read. Decompress it to a plain .tar"
            )
        ranges: dict[str, tuple[int, int]] = {}
        names: Counter[str] = Counter()
        end = 0
        try:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (entry := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                    if tar.offset <= end:
                        raise tarfile.ReadError("a header points backwards")
                    end = tar.offset
                    # A sparse file is not stored as one range of bytes.
                    if entry.isreg() and not entry.issparse():
                        names[plain_name(entry.name)] += 1
                        ranges[plain_name(entry.name)] = entry.offset_data, entry.size
        except tarfile.TarError as error:
            size = Path(path).stat().st_size
            what = f"is truncated or damaged after {size:,} bytes" if ranges else "is not a tar"
            raise VideoDecodeError(path, f"{what} ({error}). Copy it again") from error
        file.seek(end)
        mark = file.read(_BLOCK)
    is_complete = len(mark) == _BLOCK and not any(mark)
    if mark and not is_complete:
        raise VideoDecodeError(path, f"is damaged: expected a header at byte {end:,}. Copy it again")
    return TarIndex(path, ranges, tuple(name for name, count in names.items() if count > 1), is_complete)


def plain_name(name: str) -> str:
    """The name of a file in a tar without `./` and doubled slashes."""
    return str(PurePosixPath(name))
