"""Files of prepared sets: local files, and objects in a store (`s3://`, `gs://`, `az://`) through fsspec.

A local file is written under a temporary name and renamed. An object appears under its name when its upload is
complete.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from fsspec.core import url_to_fs

from hdc_keras import files, locks
from hdc_keras.data.members import file_of, member_of
from hdc_keras.data.remote import is_remote, store_problem, url_problem
from hdc_keras.errors import ConfigError, DataError, RunError

# Stores in which a set can be prepared. The other protocols of `remote` are read only.
WRITABLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
# Ranges with gaps of at most this many bytes are read at once: reading such a gap takes no longer than another request
# (our choice: 0.1 ms at 300 MB/s; 20 ms at 13 MB/s).
_LOCAL_GAP, _STORE_GAP = 1 << 15, 1 << 18
# Our choice: requests to a store wait for the network most of the time.
_STORE_READERS = 16


def parallel_reads(path: str) -> int:
    """How many files like this one to read at the same time."""
    cores = os.cpu_count() or 1
    return max(_STORE_READERS, cores) if is_remote(path) else cores


def near(path: str) -> int:
    """The largest gap, in bytes, that is read rather than skipped between two ranges of a file."""
    return _STORE_GAP if is_remote(path) else _LOCAL_GAP


def size_of(path: str) -> int | None:
    """Size of a file in bytes; `None` if it does not exist, or if URLs of this kind are not read.

    Raises:
        DataError: the store refuses or cannot be reached, or fsspec's package for it is not installed.
    """
    if not is_remote(path):
        return Path(path).stat().st_size if Path(path).is_file() else None
    if url_problem(path):
        return None
    try:
        system, name = url_to_fs(path)
        system.invalidate_cache(system._parent(name))  # fsspec remembers listings
        found = system.info(name)
    except FileNotFoundError:
        return None
    except Exception as error:  # Every store raises its own errors.
        raise DataError(store_problem(path, "read", error)) from error
    return found["size"] if found["type"] == "file" else None


def sizes_in(folder: str) -> dict[str, int | None]:
    """Size in bytes of each file in a folder, by name. A store is asked once for all of them.

    Returns:
        Sizes; `None` where the store does not say. Empty if there is no such folder.

    Raises:
        DataError: the store refuses or cannot be reached.
    """
    if not is_remote(folder):
        if not Path(folder).is_dir():
            return {}
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    try:
        system, name = url_to_fs(folder)
        system.invalidate_cache(name)  # fsspec remembers listings
        found = system.ls(name, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise DataError(store_problem(folder, "listed", error)) from error
    return {one["name"].rpartition("/")[2]: one["size"] for one in found if one["type"] == "file"}


def read_bytes(path: str) -> bytes:
    """Read a file.

    Raises:
        OSError: a local file cannot be read.
        DataError: an object cannot be read.
    """
    if not is_remote(path):
        return Path(path).read_bytes()
    try:
        system, name = url_to_fs(path)
        return system.cat_file(name)
    except Exception as error:
        raise DataError(store_problem(path, "read", error)) from error


def read_ranges(path: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
    """Read parts of a file. Parts that are near each other are read at once, with the bytes between them.

    Args:
        path: the file.
        ranges: first byte and end of each part, in ascending order.

    Raises:
        OSError: a local file cannot be read, or ends before a range.
        DataError: an object cannot be read.
    """
    spans: list[tuple[int, int]] = []
    span_of = []
    for first, end in ranges:
        if spans and first - spans[-1][1] <= near(path):
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((first, end))
        span_of.append(len(spans) - 1)
    blocks = read_spans(path, spans)
    return [
        memoryview(blocks[span])[first - spans[span][0] : end - spans[span][0]]
        for span, (first, end) in zip(span_of, ranges, strict=True)
    ]


def read_spans(path: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read exactly these parts of a file, with one request each; those to a store run in parallel. Raises as above."""
    if is_remote(path):
        try:
            system, name = url_to_fs(path)
            starts, ends = zip(*spans, strict=True)
            blocks = system.cat_ranges([name] * len(spans), list(starts), list(ends), on_error="raise")
        except Exception as error:
            raise DataError(store_problem(path, "read", error)) from error
    else:
        blocks = []
        with Path(path).open("rb", buffering=0) as file:
            for first, end in spans:
                file.seek(first)
                blocks.append(file.read(end - first))
    for block, (first, end) in zip(blocks, spans, strict=True):
        if len(block) != end - first:
            raise OSError(f"ends before byte {end}")
    return blocks


def writable_problem(folder: str) -> str:
    """Why a set cannot be prepared in a folder or at a URL of this kind; empty if it can."""
    if not folder.strip():
        return "expected a folder or its URL. Received an empty text"
    protocol, slashes, place = folder.partition(":/")
    if slashes and protocol in WRITABLE and not place.strip("/").partition("/")[0]:
        return f"expected {protocol}://BUCKET/FOLDER"
    if slashes and protocol in WRITABLE and not place.startswith("/"):
        return f"expected two slashes, as in {protocol}://BUCKET/FOLDER"
    if member_of(folder) and Path(file_of(folder)).is_file():
        return "expected a folder. This names a video inside a file"
    if is_remote(folder) and ("::" in folder or folder.partition("://")[0] not in WRITABLE):
        return f"expected a local or mounted folder, or a URL with one of the protocols {', '.join(WRITABLE)}"
    return ""


def make_folder(folder: str) -> None:
    """Create a local folder, if needed. Stores need none.

    Raises:
        ConfigError: this kind of store cannot be written.
        RunError: the folder cannot be created.
    """
    problem = writable_problem(folder)
    if problem:
        raise ConfigError(f"{folder}: {problem}.")
    if is_remote(folder):
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}). Choose another with --out.") from error


@contextmanager
def replacing(path: str) -> Iterator[Path]:
    """Yield a local path to write to. If the block ends without an error, its file becomes `path`.

    Raises:
        OSError: a local file cannot be written.
        RunError: the file cannot be uploaded.
    """
    if not is_remote(path):
        with files.replacing(Path(path)) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "upload"
        yield temporary
        try:
            system, name = url_to_fs(path)
            system.put_file(str(temporary), name)
        except Exception as error:
            raise RunError(store_problem(path, "written", error)) from error


def write_text(path: str, text: str) -> None:
    """Write a UTF-8 file atomically. Raises as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def remove(path: str) -> None:
    """Delete a file, if it exists. Raises `OSError`, or `RunError` if the store refuses."""
    if not is_remote(path):
        Path(path).unlink(missing_ok=True)
        return
    try:
        system, name = url_to_fs(path)
        system.rm_file(name)
    except FileNotFoundError:
        return
    except Exception as error:
        raise RunError(store_problem(path, "deleted", error)) from error


@contextmanager
def local_file(path: str) -> Iterator[Path]:
    """A local file with the content of `path`: `path` itself, or a temporary copy. Raises `DataError`."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rpartition("/")[2]
        try:
            system, name = url_to_fs(path)
            system.get_file(name, str(copy))
        except Exception as error:
            raise DataError(store_problem(path, "read", error)) from error
        yield copy


def exclusive(path: str) -> AbstractContextManager[None]:
    """A lock on a local path, as `locks.exclusive`. Objects have none: all writers of one write the same bytes."""
    return nullcontext() if is_remote(path) else locks.exclusive(Path(path))


def try_exclusive(path: str) -> AbstractContextManager[bool]:
    """A lock on a local path, as `locks.try_exclusive`. Objects have no locks."""
    return nullcontext(True) if is_remote(path) else locks.try_exclusive(Path(path))


def remove_leftovers(path: str) -> None:
    """Remove temporary files that killed processes left beside a local path. A store has none."""
    if not is_remote(path):
        files.remove_leftovers(Path(path))
