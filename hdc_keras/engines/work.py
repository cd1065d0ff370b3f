"""What a job that is divided into parts and the engine that runs it ask of each other.

Parts are idempotent: a part may be run in any process, and again after its process was killed. So an engine needs no
memory of its own; what is finished is found in the files of the job.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar

# What a part consists of, such as its videos.
Content = TypeVar("Content")
Content_contra = TypeVar("Content_contra", contravariant=True)

# Called in a part with (videos done, how many of these failed).
Report = Callable[[int, int], None]
# Runs one part: (its number, its content, report). Returns `False` if another process is at work on it.
RunPart = Callable[[int, Content, Report], bool]

# Seconds between two looks at parts that other processes are working on.
POLL_S = 1.0


class Work(Protocol[Content_contra]):
    """How a part is run. It is pickled for workers in other processes.

    Attributes:
        folder: where the parts are written. It is shared by all machines that take part. `None` for an object store.
        files: some of the files that the parts read, which all machines must see.
        runs_network: whether a part passes videos through a network, and so needs a GPU or all cores of a machine.
    """

    @property
    def folder(self) -> Path | None: ...  # noqa: D102
    @property
    def files(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def runs_network(self) -> bool: ...  # noqa: D102

    def open(self) -> AbstractContextManager[Callable[[int, Content_contra, Report], bool]]:
        """Acquire what all parts need, such as a network. Left with an exception, all parts in progress are stopped."""
        ...


class Engine(Protocol):
    """Something that runs the parts of a job."""

    def run(
        self,
        work: Work[Content],
        parts: Mapping[int, Content],
        at_once: int | None,
        report: Callable[[int, int, int], None],
        finished: Callable[[int], None] = lambda number: None,
    ) -> None:
        """Run all parts, and wait for those that other processes are working on.

        Args:
            work: how a part is run.
            parts: the content of each part, by number.
            at_once: largest number of parts in progress at once; `None` leaves it to the engine.
            report: called with (number, videos done, how many of these failed) of a part in progress.
            finished: called with the number of each part once it is finished, here or by another process.

        Raises:
            HDCError: what a part raises ends the job.
        """
        ...


class Tally:
    """Adds up what the parts of a job report.

    Args:
        show: called with (videos done, how many of these failed) of all parts, whenever that changes.
        done: videos that were done before.
        failed: how many of these failed.
    """

    def __init__(self, show: Callable[[int, int], None], done: int = 0, failed: int = 0):
        self.show = show
        self.done, self.failed = done, failed
        self._of_part: dict[int, tuple[int, int]] = {}
        self._lock = Lock()
        show(done, failed)

    def report(self, number: int, done: int, failed: int = 0) -> None:
        """Replace what a part reported before."""
        with self._lock:
            done_before, failed_before = self._of_part.get(number, (0, 0))
            if (done, failed) != (done_before, failed_before):
                self._of_part[number] = done, failed
                self.done += done - done_before
                self.failed += failed - failed_before
                self.show(self.done, self.failed)
