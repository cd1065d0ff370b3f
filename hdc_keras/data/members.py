"""Videos that lie inside another file: `FILE.tar::NAME`, or `FILE.parquet::COLUMN/ROW` and `FILE.arrow::COLUMN/ROW`.

Such a text is a path like any other: a `VideoRecord` carries it, a manifest may list it, and it can be sent to other
processes. Nothing is unpacked: a video in a tar or an Arrow file is a range of its bytes. A video in a Parquet file is
compressed with others, so its row is read into memory.
"""

import io
import os
import re
from pathlib import Path
from typing import NamedTuple

from hdc_keras.data.tar_files import plain_name, range_in_tar
from hdc_keras.data.video_columns import arrow_range, parquet_row, row_of, rows_in
from hdc_keras.errors import VideoDecodeError

_SEPARATOR = "::"
_MEMBER = re.compile(r"(?P<file>.+?\.(?P<kind>tar|parquet|arrow))::(?P<name>.+)", re.IGNORECASE | re.DOTALL)


class Member(NamedTuple):
    """A video inside another file.

    Attributes:
        file: path of that file.
        name: of a file in a tar; or COLUMN/ROW of a Parquet or Arrow file, where 0 is the first row.
    """

    file: str
    name: str

    @property
    def kind(self) -> str:
        """The suffix of the file: `.tar`, `.parquet` or `.arrow`."""
        return self.file[self.file.rindex(".") :].lower()


def member_path(file: str | Path, name: str) -> str:
    """The path of a video inside a file."""
    return f"{file}{_SEPARATOR}{name}"


def member_of(path: str) -> Member | None:
    """The file and the name that a path consists of; `None` if it is the path of a whole file or folder."""
    if _SEPARATOR not in path or not (found := _MEMBER.fullmatch(path)):
        return None
    name = found["name"]
    return Member(found["file"], plain_name(name) if found["kind"].lower() == "tar" else name)


def file_of(path: str) -> str:
    """The path itself, or that of the file in which the video lies."""
    member = member_of(path)
    return member.file if member else path


def resolved(path: str) -> str:
    """The path without links and relative parts, as `os.path.realpath` gives it."""
    member = member_of(path)
    return member_path(os.path.realpath(member.file), member.name) if member else os.path.realpath(path)


def open_video_file(path: str) -> io.BufferedIOBase:
    """Open a video, or any file, for reading its bytes. The result can seek.

    Raises:
        VideoDecodeError: the video lies in another file, which does not hold it or is damaged.
        OSError: the file cannot be read.
    """
    member = member_of(path)
    if member is None:
        return Path(path).open("rb")
    if member.kind == ".tar":
        return io.BufferedReader(_FileRange(member.file, *range_in_tar(member.file, member.name)))
    column, row = row_of(path, member.name)
    if member.kind == ".arrow":
        part = arrow_range(member.file, column, row)
        if isinstance(part, str):
            return _beside(path, member.file, part)
        return io.BufferedReader(_FileRange(member.file, *part))
    content = parquet_row(member.file, column, row)
    return _beside(path, member.file, content) if isinstance(content, str) else io.BytesIO(content)


def video_bytes(path: str) -> int | None:
    """Size of a video in bytes; `None` if there is no such file, or if it lies in a Parquet file, where the size is not
    known before its row is read."""
    member = member_of(path)
    try:
        if member is None:
            return Path(path).stat().st_size
        if member.kind == ".parquet":
            return None
        with open_video_file(path) as file:
            return file.seek(0, os.SEEK_END)
    except (OSError, VideoDecodeError):
        return None


def require_member(path: str) -> None:
    """Raise `VideoDecodeError` or `OSError` unless the video that a path names is in its file. Its bytes are not
    read."""
    member = member_of(path)
    assert member
    if member.kind == ".tar":
        range_in_tar(member.file, member.name)
        return
    column, row = row_of(path, member.name)
    rows = rows_in(member.file, column)
    if row >= rows:
        raise VideoDecodeError(path, f"there is no such row; the file has {rows}")


def _beside(path: str, file: str, named: str) -> io.BufferedIOBase:
    """Open the video file that a row names in place of the bytes of a video: absolute, or relative to the table."""
    if "://" in named:
        raise VideoDecodeError(path, f"the row holds no video, only the address {named}. Store the bytes, too")
    found = Path(file).parent / named
    if not found.is_file():
        raise VideoDecodeError(path, f"the row holds no video, only the path {named}, and there is no such file")
    return found.open("rb")


class _FileRange(io.RawIOBase):
    """A range of a file's bytes, as a file.

    Args:
        file: the file.
        start: first byte of the range.
        size: number of bytes.
    """

    def __init__(self, file: str, start: int, size: int):
        super().__init__()
        self._file = Path(file).open("rb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._start, self._size, self._position = start, size, 0

    def readable(self) -> bool:
        """Whether bytes can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether the position can be set: yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, relative to the range."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"cannot seek to byte {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position, relative to the range."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer with the following bytes, and return their number."""
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        read = self._file.readinto(memoryview(buffer)[:wanted]) or 0
        self._position += read
        return read

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
