"""A server that speaks S3, in a process of its own: moto. Its log has one line for each request."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

_REQUEST = re.compile(r'"([A-Z]+) (\S+) HTTP/1.1" (\d+)')


class Store:
    """The running server.

    Attributes:
        files: fsspec's file system of the server.
    """

    def __init__(self, endpoint: str, log: Path):
        from s3fs import S3FileSystem

        self.endpoint = endpoint
        self._log = log
        self.files = S3FileSystem(skip_instance_cache=True)

    def bucket(self, name: str) -> str:
        """The URL of a new bucket."""
        self.files.mkdir(name)
        return f"s3://{name}"

    def contents(self, url: str) -> dict[str, bytes]:
        """Every object below a URL, by name."""
        self.files.invalidate_cache()
        return {Path(path).name: self.files.cat_file(path) for path in self.files.find(url)}

    @contextmanager
    def requests(self):
        """Context that yields the requests of its block when it ends: objects with method, path and status."""
        before = len(self._log.read_text())
        found: list[SimpleNamespace] = []
        yield found
        lines = self._log.read_text()[before:]
        found += [SimpleNamespace(method=m, path=p, status=int(s)) for m, p, s in _REQUEST.findall(lines)]

    @contextmanager
    def access_denied(self):
        """Context in which the server refuses all keys."""
        self._post("reset-auth", b"0")
        try:
            yield
        finally:
            self._post("reset-auth", b"inf")

    def _post(self, action: str, body: bytes) -> None:
        request = urllib.request.Request(f"{self.endpoint}/moto-api/{action}", body, {"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def running_store(folder: Path):
    """Start a server, and point this process and its children to it by the usual variables of the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint, log = f"http://127.0.0.1:{port}", folder / "requests.log"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    with log.open("w") as stream, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = subprocess.Popen(
            [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=stream,
            stderr=stream,
        )
        try:
            _wait_for(port, server, log)
            yield Store(endpoint, log)
        finally:
            server.kill()
            server.wait()
            from s3fs import S3FileSystem

            S3FileSystem.clear_instance_cache()


def _wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.1)
