"""Work whose parts are counted, in whatever process they run."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class LoggedWork:
    """Wraps the work of a job: writes a line when a part begins and one when it is finished, and takes its time."""

    inner: Any
    log: Path
    seconds: float

    def __post_init__(self):
        self.folder, self.files, self.runs_network = self.inner.folder, self.inner.files, self.inner.runs_network

    @contextmanager
    def open(self) -> Iterator[Any]:
        with self.inner.open() as run_part:

            def logged(number, content, report):
                self._write(f"begun {number}")
                time.sleep(self.seconds)
                if is_finished := run_part(number, content, report):
                    self._write(f"finished {number}")
                return is_finished

            yield logged

    def _write(self, line: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{line} {os.getppid()}\n")


@dataclass
class LoggingEngine:
    """Runs the parts of a job on an engine, and counts them."""

    engine: Any
    log: Path
    seconds: float = 0.5

    def run(self, work, *arguments):
        self.engine.run(LoggedWork(work, self.log, self.seconds), *arguments)


@dataclass
class DeadlyWork:
    """Part 1 kills the process that runs it."""

    folder: Path
    files = ()
    runs_network = False

    @contextmanager
    def open(self) -> Iterator[Any]:
        yield self._run

    def _run(self, number, content, report):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / content).touch()
        return True
