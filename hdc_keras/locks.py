"""Locks between processes, also of several machines that share a disk.

A lock is a file beside what it protects. Its owner renews it every few seconds, and a lock that nobody renews is free:
process ids alone mean nothing across containers and machines (see `filelock.SoftFileLease`). A lock whose owner died on
this machine is free at once.
"""

import os
import time
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import SoftFileLease, Timeout

from hdc_keras.errors import RunError
from hdc_keras.files import temporary_beside

# Seconds after which a lock is free if its owner does not renew it (our choice: longer than a file system hangs).
LEASE_S = 60.0
# The owner renews its lock this many times in `LEASE_S`. After three missed renewals it is probably gone.
_RENEWALS = 12
_POLL_S = 0.5
# A process that looks whether a lock is stale moves it aside for a moment, so it is looked for several times.
_LOOKS, _LOOK_AGAIN_S = 5, 0.1
# Locks that other processes hold. Each remembers since when its file has not changed, which the next attempt continues.
_held_by_others: dict[Path, SoftFileLease] = {}


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Like `try_exclusive`, but waits until no other process has the lock."""
    while True:
        with _attempt(path, timeout=LEASE_S / _RENEWALS) as lock:
            if lock:
                yield
                return


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
    with _attempt(path, timeout=0) as lock:
        yield lock is not None


@contextmanager
def sole_use(path: Path, what: str, warn: Callable[[str], None] = warnings.warn) -> Iterator[Callable[[], None]]:
    """Like `try_exclusive`, but refuse to work if another process has the lock.

    If the other process seems to have died on another machine, wait until that is certain.

    Args:
        path: the file or folder to protect.
        what: what the other process does, for the message, such as "runs/mine is being trained".
        warn: called with a message before waiting.

    Returns:
        A function to call before anything is written. It raises `RunError` if another process has taken over the lock,
        because this one was suspended and did not renew it for `LEASE_S` seconds.

    Raises:
        RunError: another process has the lock, or it cannot be written.
    """
    with _attempt(path, timeout=0) as lock:
        if lock:
            yield partial(_require_kept, lock, lock.token, what)
            return
    timeout = 0.0
    if _seconds_since_renewal(path) > 3 * LEASE_S / _RENEWALS:
        warn(f"{_description(path, what)} It may have been killed: waiting up to {LEASE_S:.0f} s to be certain.")
        timeout = LEASE_S * (1 + 1 / _RENEWALS)
    with _attempt(path, timeout) as lock:
        if not lock:
            raise refusal(path, what)
        yield partial(_require_kept, lock, lock.token, what)


def is_held(path: Path) -> bool:
    """Whether another process seems to have the lock of a path. Nothing is written if there is no lock."""
    if not lock_file(path).exists():
        return False
    with try_exclusive(path) as is_mine:
        return not is_mine and _seconds_since_renewal(path) <= 3 * LEASE_S / _RENEWALS


def remove_dead_locks(folder: Path, names: Container[str]) -> None:
    """Remove what killed processes left of their locks on files whose content is the same, whoever writes them.

    Args:
        folder: the folder of the files.
        names: the names of the files.
    """
    for file in folder.glob(".*.lock*"):
        name, _, rest = file.name[1:].partition(".lock")
        if name in names:
            is_held(folder / name)  # the attempt to lock it removes the lock of a dead process
            if rest.startswith(".break."):  # `filelock` moves a lock there while it examines it
                file.unlink(missing_ok=True)


def refusal(path: Path, what: str) -> RunError:
    """The error to raise when another process has the lock of a path."""
    return RunError(
        f"{_description(path, what)} Wait until it ends, or stop it. If it was killed on another machine or in another "
        f"container, the lock {lock_file(path)} is free after {LEASE_S:.0f} s: repeat the command."
    )


def lock_file(path: Path) -> Path:
    """The file that locks a path."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def _attempt(path: Path, timeout: float) -> Iterator[SoftFileLease | None]:
    """Yield the lock of a path; `None` if another process has it."""
    lock = _held_by_others.pop(path, None) or _lease(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout, poll_interval=_POLL_S)
    except Timeout:
        _held_by_others[path] = lock
        _remove_if_nobody_signed(lock_file(path))
        yield None
        return
    except OSError as error:
        raise RunError(
            f"{lock.lock_file} cannot be written ({error.strerror or error}). Make the folder writable, or free some "
            "disk space, then repeat the command."
        ) from error
    try:
        yield lock
    finally:
        lock.release()


def _require_kept(lock: SoftFileLease, token: str | None, what: str) -> None:
    """Raise `RunError` if the file of a lock no longer names the owner that `token` stands for."""
    for _ in range(_LOOKS):
        owner = lock.owner
        if owner and owner.token == token:
            return
        time.sleep(_LOOK_AGAIN_S)
    reason = f"this process did not renew its lock {lock.lock_file} for {LEASE_S:.0f} s, as if it had been suspended"
    if owner:
        raise RunError(
            f"{what} by process {owner.pid} on {owner.hostname}, which took over because {reason}. The other process "
            "continues; this one stops and writes nothing more."
        )
    raise RunError(
        f"{lock.lock_file} is gone: another process took over because {reason}, and has ended since; or the lock was "
        "deleted. This process stops and writes nothing more. Everything saved before is intact."
    )


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(lock_file(path), lease_duration=LEASE_S, heartbeat_interval=LEASE_S / _RENEWALS)


def _remove_if_nobody_signed(file: Path) -> None:
    """Remove a lock that is still empty after a while: its owner died before it could write who it is.

    `filelock` takes an empty lock for one that another program holds, and would wait for ever.
    """
    try:
        status = file.stat()
        if status.st_size or _age(file) < LEASE_S / _RENEWALS:
            return
        aside = temporary_beside(file)
        file.rename(aside)
        if aside.stat().st_ino != status.st_ino:  # meanwhile, another process removed it and made a lock: put that back
            os.link(aside, file)
        aside.unlink()
    except OSError:
        return  # another process was faster


def _description(path: Path, what: str) -> str:
    owner = _lease(path).owner
    by = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
    return f"{what} by {by}, which renewed its lock {max(0.0, _seconds_since_renewal(path)):.0f} s ago."


def _seconds_since_renewal(path: Path) -> float:
    return _age(lock_file(path))


def _age(file: Path) -> float:
    """Seconds since a file was changed, by the clock of its file system, which other machines share; 0 if unknown."""
    probe = temporary_beside(file)
    try:
        probe.touch()
        return probe.stat().st_mtime - file.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink()
