"""The engine on a Ray cluster: workers on its nodes run the parts, and replace each other if they die."""

import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

from hdc_keras.engines.ray_worker import Shared, Worker
from hdc_keras.engines.work import POLL_S, Content, Work
from hdc_keras.errors import ConfigError, RunError
from hdc_keras.files import temporary_beside
from hdc_keras.version import __version__

# A part that ended this many workers is probably the reason, and ends the job. The same for workers that never start.
_TRIES = 3
# Seconds that a worker has to stop its part and to release its lock, before it is killed.
_STOP_S = 10.0
_CONNECT_S = 10.0
# Memory of a new cluster for objects, in bytes, the least that Ray takes: workers exchange files, not objects.
_OBJECTS = 80_000_000
# What workers take over from the environment of the command.
_ENVIRONMENT = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")


@contextmanager
def joined(address: str | None) -> Iterator["RayCluster"]:
    """Join a Ray cluster for the duration of the block.

    Args:
        address: HOST:PORT, or ray://HOST:PORT from a machine outside the cluster. `None` joins the cluster that
            RAY_ADDRESS names or that runs on this machine; if there is none, one is started and stopped at the end.

    Raises:
        ConfigError: Ray is not installed.
        RunError: there is no cluster at the address.
    """
    if find_spec("ray") is None:
        raise ConfigError("--on: ray is not installed. Install it with: pip install 'hdc-keras[ray]'")
    # Read when Ray is imported. A cluster started here sends no statistics to Ray's makers, unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.exceptions import RayError

    address = address or os.environ.get("RAY_ADDRESS")
    try:
        _connect(address or "auto")
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise RunError(
            f"the Ray cluster {address or 'of this machine'} cannot be joined: {error}\nIf it asks for a token, set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless the token is in ~/.ray/auth_token."
        ) from error
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Workers have the GPUs. This process must not take their memory.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield RayCluster()
    finally:
        ray.shutdown()
        if visible is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible


def _connect(address: str) -> None:
    import ray

    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if address not in ("auto", "local"):
        _require_listening(address)
    if address != "local":
        try:
            ray.init(address, **quiet)
            return
        except ConnectionError:
            if address != "auto":
                raise
    ray.init("local", include_dashboard=False, object_store_memory=_OBJECTS, **quiet)


def _require_listening(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise RunError(
            f"no Ray cluster answers at {address} ({error}). Expected HOST:PORT as `ray start --head` prints it (port "
            "6379 unless it was given another), or ray://HOST:PORT from a machine outside the cluster (port 10001)."
        ) from error


class RayCluster:
    """Runs parts in workers on the nodes of the Ray cluster that this process has joined. See `Engine`."""

    def run(
        self,
        work: Work[Content],
        parts: Mapping[int, Content],
        at_once: int | None,
        report: Callable[[int, int, int], None],
        finished: Callable[[int], None] = lambda number: None,
    ) -> None:
        """See `Engine.run`. As many parts at once as the cluster has room for if `at_once` is `None`.

        Raises:
            RunError: a worker does not see the files of the job, or a part ended several workers.
        """
        if not parts:
            return
        with _marker(work.folder) as marker:
            shared = Shared(__version__, marker, tuple(work.files), Path.cwd())
            with _interrupt_remembered() as interrupted, _Crew(work, shared, at_once) as crew:
                _Schedule(crew, parts, report, finished, interrupted).run()


@contextmanager
def _marker(folder: Path | None) -> Iterator[Path | None]:
    """A file in the folder whose name nobody knows, to find out whether other machines see the same folder."""
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    marker = temporary_beside(folder.absolute() / "marker")
    try:
        marker.touch()
        yield marker
    finally:
        marker.unlink(missing_ok=True)


@contextmanager
def _interrupt_remembered() -> Iterator[Event]:
    """An event that Ctrl-C sets. As an exception it would be lost wherever Ray catches, or ignores, all exceptions."""
    interrupted = Event()
    if current_thread() is not main_thread():  # only the main thread receives signals
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


class _Crew:
    """The workers of a job: starts as many as the cluster has room for, and replaces those that died."""

    def __init__(self, work: Work, shared: Shared, most: int | None):
        import ray

        self._ray = ray
        self._most = most
        self._needs = _needs(work, ray.nodes())
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._new = lambda: (
            ray.remote(Worker)
            .options(
                **self._needs,
                max_concurrency=2,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": environment},
            )
            .remote(work, shared)
        )
        self._failed_starts = 0
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.busy: list[Any] = []

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_: object) -> None:
        started = [*self.idle, *self.busy]
        stopping = [worker.stop.remote() for worker in started]
        if stopping:
            self._ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_S)
        for worker in [*started, *self.starting.values()]:
            self._ray.kill(worker)

    def grow(self, wanted: int) -> None:
        """Start workers until there are as many as are wanted, as may be, or as the cluster has room for."""
        room = max(1, sum(_room(node, self._needs) for node in self._ray.nodes()))
        most = min(room, wanted, self._most or wanted)
        while len(self.starting) + len(self.idle) + len(self.busy) < most:
            worker = self._new()
            self.starting[worker.start.remote()] = worker

    def started(self, reference: Any) -> None:
        """Take note that a worker has started, or has failed to."""
        worker = self.starting.pop(reference)
        try:
            _result(reference)
        except self._ray.exceptions.RayError as error:  # it died, or its node has too little memory
            self._failed_starts += 1
            if self._failed_starts >= _TRIES:
                raise RunError(f"{_TRIES} Ray workers in a row could not start. The last one: {error}") from error
        else:
            self._failed_starts = 0
            self.idle.append(worker)


@dataclass
class _Schedule:
    """Gives parts to workers until all are finished."""

    crew: _Crew
    parts: Mapping[int, Any]
    report: Callable[[int, int, int], None]
    finished: Callable[[int], None]
    interrupted: Event
    # Parts that other processes are working on, with the time at which to try them again.
    held: deque[tuple[float, int]] = field(default_factory=deque)
    running: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)

    def run(self) -> None:
        """Run all parts."""
        import ray

        waiting = deque(self.parts)
        looked = time.monotonic()
        while waiting or self.held or self.running:
            if self.interrupted.is_set():
                raise KeyboardInterrupt
            while self.held and self.held[0][0] <= time.monotonic():
                waiting.append(self.held.popleft()[1])
            self.crew.grow(len(waiting) + len(self.held) + len(self.running))
            while waiting and self.crew.idle:
                worker, number = self.crew.idle.pop(), waiting.popleft()
                self.crew.busy.append(worker)
                self.running[worker.run.remote(number, self.parts[number])] = worker, number
            references = [*self.running, *self.crew.starting]
            if not references:  # other processes are working on all that is left
                time.sleep(POLL_S)
                continue
            for reference in ray.wait(references, num_returns=1, timeout=POLL_S)[0]:
                if reference in self.running:
                    waiting.extend(self._ended(reference))
                else:
                    self.crew.started(reference)
            if time.monotonic() - looked > POLL_S:
                self._look()
                looked = time.monotonic()

    def _ended(self, reference: Any) -> list[int]:
        """Take note that a part has ended. Returns its number if it has to run again at once."""
        import ray
        from ray.exceptions import RayError

        worker, number = self.running.pop(reference)
        self.crew.busy.remove(worker)
        try:
            is_finished, counts = _result(reference)
        except RayError as error:  # it died, or Ray ended it for lack of memory
            ray.kill(worker)  # if only its node does not answer
            self.report(number, 0, 0)
            self.deaths[number] += 1
            if self.deaths[number] >= _TRIES:
                raise RunError(
                    f"part {number} ended {_TRIES} Ray workers, so it is not tried again. Finished parts are kept. The "
                    f"last worker: {error}"
                ) from error
            return [number]
        self.crew.idle.append(worker)
        if is_finished:
            if counts[0] == number:
                self.report(*counts)
            self.finished(number)
        else:
            self.held.append((time.monotonic() + POLL_S, number))
        return []

    def _look(self) -> None:
        """Ask the workers how far they are."""
        import ray
        from ray.exceptions import RayError

        asked = [worker.counts.remote() for worker, _ in self.running.values()]
        if asked:
            answered, _ = ray.wait(asked, num_returns=len(asked), timeout=POLL_S)
            for reference in answered:
                with suppress(RayError):  # it died, which its part will tell
                    number, done, failed = ray.get(reference)
                    if number in self.parts:
                        self.report(number, done, failed)


def _result(reference: Any) -> Any:
    """The result of a worker's method. Raises what it raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _needs(work: Work, nodes: list[dict[str, Any]]) -> dict[str, float]:
    """What a worker reserves: a core; for a network, a GPU, or the cores of the smallest node if there are no GPUs."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not work.runs_network:
        return {"num_cpus": 1}
    if any(resources.get("GPU") for resources in alive):
        return {"num_cpus": 1, "num_gpus": 1}
    return {"num_cpus": min([cores for resources in alive if (cores := resources.get("CPU"))], default=1)}


def _room(node: dict[str, Any], needs: Mapping[str, float]) -> int:
    """How many workers a node has room for."""
    if not node["Alive"]:
        return 0
    has = {"num_cpus": node["Resources"].get("CPU", 0), "num_gpus": node["Resources"].get("GPU", 0)}
    return int(min(has[name] // needed for name, needed in needs.items()))
