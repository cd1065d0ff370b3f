"""Videos in object stores: `s3://`, `gs://`, `az://`, `hf://`, `https://` and all other protocols of fsspec.

`hdc-keras prepare` downloads one video at a time to a temporary file. Training reads only the prepared set.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fsspec.core import url_to_fs

from hdc_keras.errors import DataError, VideoDecodeError


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def list_files(url: str) -> list[str]:
    """Names of all files in a remote folder and its sub-folders, relative to it, sorted.

    Raises:
        DataError: the store cannot be reached, or fsspec's package for it is not installed.
    """
    try:
        system, folder = url_to_fs(url)
        return sorted(name.removeprefix(folder).lstrip("/") for name in system.find(folder))
    except Exception as error:  # Every store raises its own errors. The message names the package if one is missing.
        raise DataError(f"{url}: cannot be listed ({type(error).__name__}: {error}).") from error


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Path of a local file with the content of `path`: `path` itself if it is local, otherwise a temporary copy.

    Raises:
        VideoDecodeError: the file cannot be fetched.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(path).name
        try:
            system, name = url_to_fs(path)
            system.get_file(name, str(copy))
        except Exception as error:  # Every store raises its own errors.
            raise VideoDecodeError(path, f"cannot be fetched ({type(error).__name__}: {error})") from error
        yield str(copy)
