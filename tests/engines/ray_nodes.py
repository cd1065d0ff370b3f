"""Starts the nodes of a Ray cluster on this machine, each with its own raylet and one core, and ends them for sure."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


@contextmanager
def head_node(folder: Path) -> Iterator[tuple[str, str]]:
    """Start a cluster of one node, and yield its addresses, inside and outside of it."""
    port, client_port = free_ports()
    ports = [f"--port={port}", f"--ray-client-server-port={client_port}"]
    with node(["--head", *ports, f"--temp-dir={folder}", "--include-dashboard=false"], folder / "head.log"):
        yield f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}"


@contextmanager
def node(arguments: list[str], log: Path) -> Iterator[psutil.Process]:
    """Start a node, and yield its raylet."""
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--block", "--num-cpus=1", "--object-store-memory=80000000", *arguments]
    # The workers import this project, tests included.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    patient = {"RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120"}  # for a machine that is busy with other tests
    # Otherwise it depends on the user's home whether the cluster asks for a token.
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
    environment = {**os.environ, **patient, **settings}
    with log.open("w") as stream:
        started = psutil.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
    seen = [started]
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert started.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        seen += started.children(recursive=True)
        yield next(process for process in seen if process.name() == "raylet")
    finally:
        if started.is_running():
            seen += started.children(recursive=True)
        for process in seen:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        subprocess.Popen.wait(started)
        assert not psutil.wait_procs(seen[1:], timeout=30)[1]


def free_ports() -> tuple[int, int]:
    """Two ports below those that Ray gives to workers."""
    free = []
    for port in range(5000 + 2 * (os.getpid() % 2000), 9900):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                free.append(port)
        if len(free) == 2:
            return free[0], free[1]
    raise AssertionError("no port is free")
