"""Atomic writing of files: a crash or a full disk never leaves a partial file, and no reader ever sees one.

Every file and folder that the package writes under its final name goes through here: it is written under a temporary
name beside the final one, flushed to disk and renamed. `remove_leftovers` removes the temporary files that a killed
process left behind.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hdc_keras.errors import RunError

# Part of every temporary name. Such a name begins with a dot and, unless a writer needs the final suffix, lacks it, so
# that patterns such as `*.json` do not match it.
_MARK = ".unfinished-"


@contextlib.contextmanager
def replacing(file: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path to write to. When the block ends without an error, rename it to `file`.

    Args:
        file: the final path of a file or folder. Its parent folder is created if needed. An existing file is
            replaced; an existing folder is not.
        suffix: ending of the temporary path, for writers that choose the format by it.

    Raises:
        OSError: it cannot be written. An existing file is unchanged, and the temporary one is removed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(file, suffix)
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(file)
        _flush(file.parent)  # Makes the new name durable.
    finally:
        _remove(temporary)


@contextlib.contextmanager
def replacing_stream(file: Path) -> Iterator[BinaryIO]:
    """Like `replacing`, but yields a binary stream to write to."""
    with replacing(file) as temporary, temporary.open("wb") as stream:
        yield stream


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file atomically. Raises `OSError` when it cannot be written."""
    with replacing_stream(file) as stream:
        stream.write(content)


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 file atomically. Raises `OSError` when it cannot be written."""
    write_bytes(file, text.encode())


def write_requested(file: Path, content: bytes) -> None:
    """Write the file that a user asked for with `--out`. Raises `RunError` when it cannot be written."""
    try:
        write_bytes(file, content)
    except OSError as error:
        raise RunError(f"{file} cannot be written ({error.strerror or error}). Choose another with --out.") from error


def require_writable(folder: Path, name: str = "probe") -> None:
    """Create a folder if needed, and find out whether files can be written there, before long work begins.

    Args:
        folder: the folder.
        name: a file that will be written there; `remove_leftovers` of it removes the rest of a killed process.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = temporary_beside(folder / name)
    try:
        probe.write_bytes(b"0")
    finally:
        _remove(probe)


def require_creatable(path: Path) -> None:
    """Find out whether a file or folder can be created, or written if it is a folder that exists. Creates nothing.

    Raises:
        OSError: it cannot.
    """
    place = path.absolute().parent if path.is_file() else path.absolute()
    while not place.exists():
        place = place.parent
    probe = temporary_beside(place / "probe")
    try:
        probe.write_bytes(b"0")
    finally:
        _remove(probe)


def link_or_copy(source: Path, file: Path) -> None:
    """Make `file` a hard link to `source`, which takes no space, or a copy where links are not possible.

    Neither may be modified in place afterwards, because both may be the same file.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(file) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def temporary_beside(path: Path, suffix: str = "") -> Path:
    """A hidden path in the same folder that no other process, machine or container uses."""
    return path.with_name(f".{path.name}{_MARK}{secrets.token_hex(6)}{suffix}")


@contextlib.contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """Create a folder beside a path for intermediate files; it is removed, with its content, when the block ends."""
    folder = temporary_beside(beside)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _remove(folder)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders that killed processes left behind. No other process may be writing there.

    Args:
        path: the final path to which they belong; or an existing folder, of which all leftovers are removed.
    """
    folder, of = (path, "") if path.is_dir() else (path.parent, f".{path.name}{_MARK}")
    for leftover in folder.glob(f".*{_MARK}*"):
        if leftover.name.startswith(of):
            _remove(leftover)


def flush_to_disk(path: Path) -> None:
    """Flush a file, or a folder and everything in it, from the operating system's memory to disk."""
    for found in [*path.rglob("*"), path] if path.is_dir() else [path]:
        _flush(found)


def _flush(path: Path) -> None:
    """Flush the content of one file, or the list of names in one folder (not the files themselves)."""
    # Some file systems, and Windows, cannot flush a folder.
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
