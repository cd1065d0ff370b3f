"""Reads `.keras` files, including checkpoints in the layout of earlier versions of this package."""

import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hdc_keras.errors import WeightsError

_WEIGHTS = "model.weights.h5"
# Groups of the weights file that have moved: in version 0.1.0, heads and invariance were layers of `HDC` itself.
_MOVED = {
    "heads": "layers/contrast_objective/heads",
    "invariance_weights": "layers/contrast_objective/invariance_weights",
}
# What the readers of zip archives, JSON, HDF5 and Keras models raise for a damaged file.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def read_model(file: Path, compiled: bool = False) -> Any:
    """Load a Keras model.

    Args:
        file: a `.keras` file, which holds a checkpoint of `HDC` or another model.
        compiled: whether to load the optimizer too, to continue training.

    Raises:
        WeightsError: the file does not exist, cannot be read, or is damaged.
    """
    import keras

    import hdc_keras.model  # noqa: F401, registers the classes of a checkpoint with Keras

    if not file.exists():
        raise WeightsError(f"{file} cannot be loaded: no such file.")
    if file.is_dir():
        raise WeightsError(f"{file} cannot be loaded: it is a folder. Expected a `.keras` file.")
    try:
        with _in_current_layout(file) as current:
            return keras.models.load_model(current, compile=compiled)
    except _UNREADABLE as error:
        problem = damage_of(file) or " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{file} cannot be loaded: {problem}. Use another checkpoint, or restore this file from a copy."
        ) from error


def damage_of(file: Path) -> str | None:
    """What is damaged in a `.keras` file; `None` if its content is as it was written."""
    try:
        with zipfile.ZipFile(file) as archive:
            missing = {"config.json", _WEIGHTS} - set(archive.namelist())
            changed = archive.testzip()
    except PermissionError:
        return None
    except _UNREADABLE as error:
        return f"it is damaged, or not a `.keras` file ({error})"
    if missing:
        return f"it is damaged, or not a `.keras` file ({', '.join(sorted(missing))} is missing)"
    return f"it is damaged (the content of {changed} has changed)" if changed else None


@contextmanager
def _in_current_layout(file: Path) -> Iterator[Path]:
    """The file itself if its layout is current, else a temporary copy in which the weights have been moved."""
    import h5py

    with zipfile.ZipFile(file) as archive:
        with archive.open(_WEIGHTS) as stream, h5py.File(stream, "r") as weights:
            is_current = not any(name in weights for name in _MOVED)
        if is_current:
            yield file
            return
        with tempfile.TemporaryDirectory() as folder:
            archive.extractall(folder)
            with h5py.File(Path(folder) / _WEIGHTS, "r+") as weights:
                for old, new in _MOVED.items():
                    if old in weights:
                        weights.move(old, new)
            upgraded = Path(folder) / file.name
            with zipfile.ZipFile(upgraded, "w") as copy:
                for name in archive.namelist():
                    copy.write(Path(folder) / name, name)
            yield upgraded
