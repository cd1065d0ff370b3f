"""Reads files of prepared sets: local files, and URLs that TensorFlow's file systems support (`gs://`)."""

from importlib.util import find_spec
from pathlib import Path

from hdc_keras.data.remote import is_remote


def size_of(path: str) -> int | None:
    """Size of a file in bytes.

    Returns:
        `None` if the file does not exist, or if TensorFlow is not installed or does not support this kind of URL.

    Raises:
        OSError: the store cannot be reached.
    """
    if not is_remote(path):
        return Path(path).stat().st_size if Path(path).is_file() else None
    if find_spec("tensorflow") is None:
        return None
    import tensorflow as tf

    try:
        return tf.io.gfile.stat(path).length
    except (tf.errors.NotFoundError, tf.errors.UnimplementedError):
        return None
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


def read_bytes(path: str, offset: int = 0, size: int = -1) -> bytes:
    """Read part of a file, or all of it.

    Raises:
        OSError: the file cannot be read.
    """
    if not is_remote(path):
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(size)
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
