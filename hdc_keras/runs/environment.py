"""Describes what results depend on besides the config: versions, devices, commit."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import keras

from hdc_keras.devices import list_devices

_PACKAGES = ("hdc-keras", "keras", "tensorflow", "jax", "torch", "numpy", "av")


def describe_environment(seed: int) -> dict[str, Any]:
    """Versions, devices, commit, command and seed, as values for JSON."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "devices": list_devices(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        "packages": versions,
        "commit": _commit(),
        "command": sys.argv,
        "seed": seed,
    }


def _commit() -> str | None:
    """Commit of the git checkout that the package runs from; `None` if it does not run from one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    described = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
