"""Where output goes, and the progress bar that all commands share."""

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

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

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


# What TensorFlow's native code says while it starts on a machine without a GPU, and LiteRT's while it loads a file; no
# setting of their own keeps them quiet.
_NOTICE = re.compile(
    r"^(WARNING: All log messages before absl|[IWE]\d{4} .*(cuda|onednn|oneDNN|cpu_feature_guard)|To enable"
    r"|INFO: Created TensorFlow Lite)"
)


def start_backend() -> None:
    """Import Keras with its backend, and find the devices, without the notices that this prints."""
    with notices_removed():
        from hdc_keras.devices import list_devices

        list_devices()
    # It counts traces of any function of that name, and every network that is evaluated has one.
    logging.getLogger("tensorflow").addFilter(lambda record: "triggered tf.function retracing" not in str(record.msg))


@contextmanager
def notices_removed() -> Iterator[None]:
    """Pass on what native code writes to stderr, but for known notices."""
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


def progress_bar() -> Progress:
    """Bar, count, time so far and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


class NamedBars:
    """One bar for each name that reports come under."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self._bars: dict[str, TaskID] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        """Move the bar of `name`."""
        if name not in self._bars:
            self._bars[name] = self.progress.add_task(name, total=total, note="")
        self.progress.update(self._bars[name], completed=done)
