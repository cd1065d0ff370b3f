"""Files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path

from hdc_keras.errors import RunError


def write_whole(file: Path, content: bytes) -> None:
    """Write under a temporary name beside it and rename; its folder is made if need be.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_out(file: Path, content: bytes) -> None:
    """Write what a user has asked for with `--out`, whole or not at all. Raises `RunError` when it cannot be written."""
    try:
        write_whole(file, content)
    except OSError as error:
        raise RunError(f"{file} cannot be written ({error.strerror or error}). Choose another with --out.") from error
