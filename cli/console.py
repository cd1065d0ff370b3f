"""Where output goes, and the progress bar that all commands share."""

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
