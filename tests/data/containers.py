"""Writes the files of which videos can be a part, as their usual tools write them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np

from hdc_keras.data.synthetic import write_video
from tests.conftest import numbered_frames


def video(folder: Path, name: str = "clip.mp4", first: int = 0, frames: int = 12) -> Path:
    """A video whose frames show numbers, from `first`."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.ascontiguousarray(numbered_frames(first + frames)[first:]), rate=10)
    return path


def write_tar(path: Path, files: dict[str, bytes | str | dict | Path], mode: str = "w") -> Path:
    """A tar of files by name; objects become JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            add_to_tar(tar, name, content)
    return path


def add_to_tar(tar: tarfile.TarFile, name: str, content: bytes | str | dict | Path) -> None:
    if isinstance(content, Path):
        content = content.read_bytes()
    elif isinstance(content, dict):
        content = json.dumps(content)
    data = content.encode() if isinstance(content, str) else content
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def write_parquet(path: Path, videos: list[Path | None], row_group_size: int = 2, **columns: list) -> Path:
    """A Parquet file with a column `video` of files, as on the Hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"video": embedded(videos), **columns}), path, row_group_size=row_group_size)
    return path


def embedded(videos: list[Path | None]):
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([{"bytes": one.read_bytes(), "path": one.name} if one else None for one in videos], kind)
