"""Reads `.keras` files, including checkpoints in the layout of earlier versions of this package."""

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


def read_model(file: Path, compiled: bool = False) -> Any:
    """Load a Keras model.

    Args:
        file: a `.keras` file, which holds a checkpoint of `HDC` or another model.
        compiled: whether to load the optimizer too, to continue training.

    Raises:
        WeightsError: the file cannot be read, or is damaged.
    """
    import keras

    import hdc_keras.model  # noqa: F401, registers the classes of a checkpoint with Keras

    try:
        with _in_current_layout(file) as current:
            return keras.models.load_model(current, compile=compiled)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise WeightsError(f"{file} cannot be loaded: {_cause(file, error)}") from error


def _cause(file: Path, error: Exception) -> str:
    """Why a file cannot be loaded, in one line. Keras calls every file that is not a zip archive "not found"."""
    if not file.exists():
        return "no such file"
    if file.is_file() and not zipfile.is_zipfile(file):
        return "it is damaged, or not a `.keras` file"
    return " ".join(str(error).split())[:300]


@contextmanager
def _in_current_layout(file: Path) -> Iterator[Path]:
    """The file itself if its layout is current, else a temporary copy in which the weights have been moved."""
    import h5py

    if not zipfile.is_zipfile(file):  # Keras will explain what is wrong with it
        yield file
        return
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
