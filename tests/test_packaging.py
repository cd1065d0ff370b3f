"""What a wheel holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    here = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "hdc_keras").rglob("*.py")
        if "__pycache__" not in file.parts
    }

    assert set(setuptools["packages"]) == here | {"hdc_keras_cli", "hdc_keras_configs"}
