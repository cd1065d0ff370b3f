"""Locks between processes, also of several machines that share a disk.

A lock is a file beside what it protects. Its owner renews it every few seconds, and a lock that nobody renews is free:
process ids alone mean nothing across containers and machines (see `filelock.SoftFileLease`). A lock whose owner died on
this machine is free at once.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from hdc_keras.errors import RunError

# Seconds after which a lock is free if its owner does not renew it (our choice: longer than a file system hangs).
LEASE_S = 60.0
_POLL_S = 0.5


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Like `try_exclusive`, but waits until no other process has the lock."""
    while True:
        with try_exclusive(path) as is_mine:
            if is_mine:
                yield
                return
        time.sleep(_POLL_S)


@contextmanager
def try_exclusive(path: Path) -> Iterator[bool]:
    """Lock a path for the duration of the block, unless another process has locked it.

    Args:
        path: the file or folder to protect. It need not exist; its parent folder is created.

    Returns:
        Whether this process has the lock.

    Raises:
        RunError: the lock cannot be written.
    """
    lock = _lease(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise RunError(
            f"{lock.lock_file} cannot be written ({error.strerror or error}). Make the folder writable, or free some "
            "disk space, then repeat the command."
        ) from error
    try:
        yield True
    finally:
        lock.release()


def lock_file(path: Path) -> Path:
    """The file that locks a path."""
    return path.with_name(f".{path.name}.lock")


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(lock_file(path), lease_duration=LEASE_S)
