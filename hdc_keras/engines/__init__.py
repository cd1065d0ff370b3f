"""Engines that run the parts of a job: this process, or a Ray cluster."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hdc_keras.engines.work import Engine
from hdc_keras.errors import ConfigError

HERE = "here"
_ADDRESS = re.compile(r"(ray://)?([^/:]+|\[[^/]+\]):(?P<port>\d{1,5})")


@contextmanager
def engine_on(place: str) -> Iterator[Engine | None]:
    """The engine that `--on` names; `None` for this process.

    Args:
        place: "here"; "ray" for the Ray cluster of this machine, or a new one if there is none; or the address of a
            cluster, as HOST:PORT or ray://HOST:PORT.

    Example:
        ```python
        with engine_on("10.0.0.1:6379") as engine:
            prepare(records, Path("prepared"), engine=engine)
        ```

    Raises:
        ConfigError: the place is not one of these, or Ray is not installed.
        RunError: there is no cluster at the address.
    """
    if place == HERE:
        yield None
        return
    address = _ADDRESS.fullmatch(place)
    if place != "ray" and not (address and int(address["port"]) < 2**16):
        raise ConfigError(f"--on: expected here, ray, HOST:PORT or ray://HOST:PORT. Received: {place}")
    from hdc_keras.engines.ray_cluster import joined

    with joined(None if place == "ray" else place) as cluster:
        yield cluster
