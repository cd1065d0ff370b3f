"""Where output goes, and the progress bars that all commands share."""

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hdc_keras.errors import ConfigError, did_you_mean

# Text is printed as it is: `[x]` and `:name:` may be part of a name. Styles are passed to `print` or in a `Text`.
console = Console(highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False)


# Notices of native code that no setting turns off: TensorFlow prints them when it starts on a machine without a GPU,
# LiteRT when it loads a file.
_NOTICE = re.compile(
    r"^(WARNING: All log messages before absl|[IWE]\d{4} .*(cuda|onednn|oneDNN|cpu_feature_guard)|To enable"
    r"|INFO: Created TensorFlow Lite)"
)


# What installs each backend.
_BACKENDS = {"tensorflow": "tensorflow", "jax": "'hdc-keras[jax]'", "torch": "'hdc-keras[torch]'"}


def start_backend() -> None:
    """Import Keras with its backend and detect the devices, hiding the start-up notices.

    Raises:
        ConfigError: the backend is unknown or not installed.
    """
    backend = _required_backend()
    with notices_hidden():
        _import_keras(backend)

        from hdc_keras.devices import list_devices
        from hdc_keras.training.cluster import is_multi_process

        # Processes of JAX must meet before one of them looks at its devices.
        if backend != "jax" or not is_multi_process():
            list_devices()
    logging.getLogger("tensorflow").addFilter(_is_not_about_retracing)


def _import_keras(backend: str) -> None:
    """Import Keras without packages that it and TensorFlow only try to import, for functions that no command uses.

    They would take seconds. Whoever imports them later gets them.
    """
    unused = {"jax", "matplotlib", "sklearn"} - {backend} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(unused))  # type: ignore[arg-type]  # an import raises ModuleNotFoundError
    try:
        import keras  # noqa: F401
    finally:
        for name in unused:
            del sys.modules[name]


def _required_backend() -> str:
    # Keras reads the variable first, then its config file. It is not asked, because it imports the backend at once.
    name, source = os.environ.get("KERAS_BACKEND"), "KERAS_BACKEND"
    if not name:
        file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
        try:
            name, source = json.loads(file.read_text(encoding="utf-8"))["backend"], f"`backend` in {file}"
        except (OSError, ValueError, KeyError, TypeError):
            name, source = "tensorflow", "the default backend"
    if name not in _BACKENDS:
        known = ", ".join(_BACKENDS)
        raise ConfigError(f"{source}: expected one of {known}. Received: {name}.{did_you_mean(str(name), _BACKENDS)}")
    if find_spec(name) is None:
        others = " or ".join(other for other in _BACKENDS if other != name)
        raise ConfigError(
            f"{source}: {name} is not installed. Install it with: pip install {_BACKENDS[name]}, or set "
            f"KERAS_BACKEND to {others}."
        )
    return name


def _is_not_about_retracing(record: logging.LogRecord) -> bool:
    # TensorFlow counts traces by function name and warns when two networks each trace a function of the same name.
    return "triggered tf.function retracing" not in str(record.msg)


@contextmanager
def notices_hidden() -> Iterator[None]:
    """Capture what is written to stderr, including output of native code, then print it without the known notices."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            captured.seek(0)
            for line in captured.read().decode(errors="replace").splitlines():
                if not _NOTICE.match(line):
                    print(line, file=sys.stderr)


def print_notes(notes: Sequence[str]) -> None:
    """Print the library's notes, one per line."""
    for note in notes:
        console.print(note)


def print_parts(*parts: str | tuple[str, str], soft_wrap: bool = False) -> None:
    """Print parts as one text: a part is plain, or a pair of text and style, as in ("runs/a", "bold")."""
    console.print(Text.assemble(*parts), soft_wrap=soft_wrap)


def print_failures(failures: Sequence[str], shown: int) -> None:
    """Print the first `shown` failures in red, one per line, and how many more there are."""
    for failure in failures[:shown]:
        console.print(failure, style="red", soft_wrap=True)
    if len(failures) > shown:
        console.print(f"and {len(failures) - shown} more", style="red")


def progress_bar() -> Progress:
    """A bar with a count, the elapsed time, the remaining time and a note."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


class NamedBars:
    """Progress bars by name: the first report under a name adds its bar."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self._bars: dict[str, TaskID] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        """Move the bar `name`."""
        if name not in self._bars:
            self._bars[name] = self.progress.add_task(name, total=total, note="")
        self.progress.update(self._bars[name], completed=done)
