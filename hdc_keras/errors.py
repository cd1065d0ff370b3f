"""The errors that users see. Each message says what went wrong, where, what was expected, and what to do."""

import difflib
from collections.abc import Iterable


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of an error message: " Did you mean `NAME`?" with the closest known name, or nothing if none is close."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean `{near[0]}`?" if near else ""
