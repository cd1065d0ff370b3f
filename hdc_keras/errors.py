"""The errors users see: each says what was wrong, where, what was expected and what to do."""


class HDCError(Exception):
    """A failure explained in one message. The command line prints it and exits with `exit_code`."""

    exit_code = 1


class ConfigError(HDCError):
    """The configuration or an argument is wrong; nothing was started."""

    exit_code = 2


class DataError(HDCError):
    """The videos, or the manifest that lists them, cannot be used."""


class WeightsError(HDCError):
    """Weights that cannot be loaded into a network."""


class VideoDecodeError(DataError):
    """One video could not be decoded.

    Attributes:
        path: the file.
        cause: why, in one line.
    """

    def __init__(self, path: str, cause: str):
        super().__init__(f"{path}: {cause}")
        self.path = path
        self.cause = cause


class TrainingError(HDCError):
    """Training cannot go on."""


class RunError(HDCError):
    """A run directory cannot be created, read or continued."""


class ExportError(HDCError):
    """A network cannot be written in a format, or what was written does not do what the network does."""


class StoppedError(HDCError):
    """A signal stopped the work; what was done is kept.

    Attributes:
        exit_code: 128 and the signal's number.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.exit_code = 128 + signal
