"""What the engine on a Ray cluster runs on the nodes. It does not import Ray, which imports it there."""

import os
import socket
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from hdc_keras.engines.work import Work
from hdc_keras.errors import RunError
from hdc_keras.version import __version__


@dataclass(frozen=True)
class Shared:
    """What every worker must see as this process sees it: the installed version, and the files of the job."""

    version: str
    marker: Path | None
    files: tuple[str, ...]
    working_folder: Path

    def require(self) -> None:
        """Raise `RunError` if this worker sees something else. Relative paths are those of the command."""
        with suppress(OSError):  # it need not exist here if all paths are absolute
            os.chdir(self.working_folder)
        node = f"the Ray worker on {socket.gethostname()} (process {os.getpid()})"
        if self.version != __version__:
            raise RunError(
                f"{node} has hdc-keras {__version__}, but the command runs {self.version}. Install one version."
            )
        if self.marker and not self.marker.exists():
            raise RunError(
                f"{node} cannot see {self.marker.parent}, or sees another folder of that name. All nodes must share it "
                "under the same path, as on a network drive."
            )
        for file in self.files:
            if not Path(file).exists():
                raise RunError(f"{node} cannot see {file}. All nodes must see the job's files under the same path.")


class Worker:
    """A process on a node of the cluster, which runs one part at a time. A Ray actor with two threads."""

    def __init__(self, work: Work, shared: Shared):
        self._work = work
        self._shared = shared
        self._stack = ExitStack()
        self._counts = (-1, 0, 0)
        self._stopped = False
        self._running = Lock()

    def start(self) -> None:
        """Check what this node sees, and open the work."""
        self._shared.require()
        self._run_part = self._stack.enter_context(self._work.open())

    def run(self, number: int, content: Any) -> tuple[bool, tuple[int, int, int]]:
        """Run a part. Returns whether it is finished, and its last report."""

        def report(done: int, failed: int) -> None:
            self._counts = (number, done, failed)
            if self._stopped:
                raise CancelledError

        with self._running:
            return self._run_part(number, content, report), self._counts

    def counts(self) -> tuple[int, int, int]:
        """The last report of the newest part: its number, videos done, and how many of these failed."""
        return self._counts

    def stop(self) -> None:
        """Stop the part in progress, and wait until it has released its lock."""
        self._stopped = True
        error = CancelledError()
        with suppress(CancelledError):
            self._stack.__exit__(CancelledError, error, None)
        with self._running:
            pass
