"""Videos in object stores and on web servers: `s3://`, `gs://`, `az://`, `hf://`, `https://`, read through fsspec.

`hdc-keras prepare` downloads one video at a time to a temporary file. Training reads only the prepared set, which
may be in a store too (`storage`).
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fsspec.callbacks import Callback
from fsspec.core import url_to_fs

from hdc_keras.errors import DataError, VideoDecodeError

# Object stores and web servers. fsspec knows many more, such as `ssh`, `zip` and `github`: a list of videos from
# elsewhere must not make this machine log in somewhere or unpack archives. `file` reads what a path reads too, and
# `memory` is empty unless a program fills it: the tests need both.
PROTOCOLS = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "file", "memory")
# Our choice: an hour of 4K video takes about 8 GiB, and training sets consist of short clips.
MAX_BYTES = 8 * 2**30
_SUFFIX = re.compile(r"\.\w{1,8}")
# Other servers that speak S3 than Amazon's.
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "FSSPEC_S3_ENDPOINT_URL")
# What to install for the URLs of a store.
_PACKAGES = {
    "s3fs, with pip install 'hdc-keras[s3]'": ("s3", "s3a"),
    "gcsfs": ("gs", "gcs"),
    "adlfs": ("az", "abfs", "abfss"),
    "huggingface_hub, with pip install 'hdc-keras[hub]'": ("hf",),
    "aiohttp": ("http", "https"),
}


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def url_problem(url: str) -> str:
    """Why a URL is not read; empty if it is."""
    protocol = url.partition("://")[0]
    if protocol not in PROTOCOLS or "::" in url:  # fsspec chains protocols by `::`
        return f"expected a local path, or a URL with one of the protocols {', '.join(PROTOCOLS)}"
    return ""


def store_problem(url: str, done: str, error: Exception) -> str:
    """One line that says why a store refused, for an error message.

    Args:
        url: what was read or written.
        done: what was tried, such as "read".
        error: what fsspec raised.
    """
    protocol, _, place = url.partition("://")
    if isinstance(error, ImportError):
        package = next((name for name, protocols in _PACKAGES.items() if protocol in protocols), str(error))
        return f"{url}: cannot be {done}, because a package is missing. Install {package}."
    said = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        bucket = f"{protocol}://{place.partition('/')[0]}"
        return f"{url}: cannot be {done} ({said}). Check the spelling, and that {bucket} exists."
    if isinstance(error, PermissionError) or "credentials" in said:
        return (
            f"{url}: cannot be {done}, because access is denied ({said}). Give this machine credentials of the store "
            "that allow it."
        )
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    advice = f" {endpoint} is set to {os.environ[endpoint]}." if endpoint and protocol in ("s3", "s3a") else ""
    return f"{url}: cannot be {done} ({type(error).__name__}: {said}).{advice}"


def list_files(url: str) -> list[str]:
    """Names of all files in a remote folder and its sub-folders, relative to it, sorted.

    Raises:
        DataError: the protocol is not supported, the store cannot be reached, or fsspec's package for it is not
            installed.
    """
    problem = url_problem(url)
    if problem:
        raise DataError(f"{url}: {problem}.")
    try:
        system, folder = url_to_fs(url)
        files = system.find(folder)
    except Exception as error:  # Every store raises its own errors.
        raise DataError(store_problem(url, "listed", error)) from error
    prefix = f"{folder.rstrip('/')}/"  # A web page also lists links to other places.
    return sorted(name.removeprefix(prefix) for name in files if name.startswith(prefix))


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Path of a local file with the content of `path`: `path` itself if it is local, otherwise a temporary copy.

    Raises:
        VideoDecodeError: the file cannot be fetched, or is larger than `MAX_BYTES`.
    """
    if not is_remote(path):
        yield path
        return
    problem = url_problem(path)
    if problem:
        raise VideoDecodeError(path, problem)
    suffix = PurePosixPath(path.partition("?")[0]).suffix
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"video{suffix if _SUFFIX.fullmatch(suffix) else ''}"
        try:
            system, name = url_to_fs(path)
            _refuse_large(system.info(name).get("size"))
            system.get_file(name, str(copy), callback=_LimitedSize())
            _refuse_large(copy.stat().st_size)
        except _TooLargeError as error:
            raise VideoDecodeError(path, str(error)) from error
        except Exception as error:  # Every store raises its own errors.
            raise VideoDecodeError(path, f"cannot be fetched ({type(error).__name__}: {error})") from error
        yield str(copy)


class _TooLargeError(Exception):
    pass


def _refuse_large(size: int | None) -> None:
    if size and size > MAX_BYTES:
        raise _TooLargeError(
            f"larger than {MAX_BYTES / 2**30:g} GiB, the limit for a remote video. Cut it into clips, or copy it to "
            "this machine"
        )


class _LimitedSize(Callback):
    """Ends a download that exceeds the limit: a web server may state no size, or a wrong one."""

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        _refuse_large(self.value)

    def absolute_update(self, value: int) -> None:
        super().absolute_update(value)
        _refuse_large(value)
