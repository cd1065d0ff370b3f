"""The errors that users see. Each message says what went wrong, where, what was expected, and what to do."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

# Our choice: `coupld` is close enough to `coupled`, and `float16` is not close enough to `float32`.
_CLOSE = 0.75


class HDCError(Exception):
    """Base class. The command line prints the message without a traceback and exits with `exit_code`."""

    exit_code = 1


class ConfigError(HDCError):
    """The config or an argument is wrong; nothing was started."""

    exit_code = 2


class DataError(HDCError):
    """The videos, or the manifest that lists them, cannot be used."""


class WeightsError(HDCError):
    """Weights cannot be loaded into a network."""


class VideoDecodeError(DataError):
    """One video could not be decoded.

    Attributes:
        path: path of the video.
        cause: the reason, in one line.
    """

    def __init__(self, path: str, cause: str):
        super().__init__(f"{path}: {cause}")
        self.path = path
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.cause)


class TrainingError(HDCError):
    """Training cannot continue."""


class RunError(HDCError):
    """A run directory cannot be created, read, resumed or written."""


class ExportError(HDCError):
    """A network cannot be exported to a format, or the exported file gives other outputs than the network."""


class StoppedError(HDCError):
    """A signal stopped the command; everything finished so far is kept.

    Attributes:
        exit_code: 128 plus the number of the signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.exit_code = 128 + signal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.exit_code - 128)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of an error message: " Did you mean `NAME`?" with the closest known name, or nothing if none is close."""
    near = closest(name, known)
    return f" Did you mean `{near}`?" if near else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is spelled like `name`, or one with `name` as a word, as `mixed_float16` has `float16`."""
    spelled = {candidate.casefold(): candidate for candidate in known}
    wanted = name.casefold()
    with_word = [candidate for candidate in spelled if wanted in re.split(r"[^a-z0-9]+", candidate)]
    near = difflib.get_close_matches(wanted, spelled, 1, _CLOSE) or with_word
    return spelled[near[0]] if near else None
