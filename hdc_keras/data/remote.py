"""Videos in object stores, through fsspec: `s3://`, `gs://`, `az://`, `hf://`, `https://` and whatever else it knows.

`hdc-keras prepare` reads them, one at a time, by way of a temporary copy; training reads what it has prepared.
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
    """Names of all files below a remote folder, relative to it, sorted.

    Raises:
        DataError: the store cannot be reached, or the package that speaks to it is not installed.
    """
    try:
        system, folder = url_to_fs(url)
        return sorted(name.removeprefix(folder).lstrip("/") for name in system.find(folder))
    except Exception as error:  # every store has its own errors; where a package is missing, its name is in it
        raise DataError(f"{url}: cannot be listed ({type(error).__name__}: {error}).") from error


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A local file with the content of `path`, which is itself where it is local.

    Raises:
        VideoDecodeError: it cannot be fetched.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(path).name
        try:
            system, name = url_to_fs(path)
            system.get_file(name, str(copy))
        except Exception as error:  # every store has errors of its own
            raise VideoDecodeError(path, f"cannot be fetched ({type(error).__name__}: {error})") from error
        yield str(copy)
