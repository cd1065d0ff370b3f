import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

COMMAND = Path(sys.executable).parent / "hdc-keras"


def test_importing_the_package_and_asking_for_help_load_no_backend():
    code = (
        "import sys, hdc_keras, hdc_keras_cli.main;"
        "heavy = {'tensorflow', 'keras', 'jax', 'torch', 'keras_cv', 'sklearn', 'av', 'numpy', 'pyarrow'};"
        "heavy &= set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["pretrain", "evaluate", "embed", "report", "export"])
def test_every_command_helps_with_examples(command):
    done = subprocess.run([COMMAND, command, "--help"], capture_output=True, text=True)

    assert done.returncode == 0 and f"hdc-keras {command} --run" in done.stdout


def test_named_configs_are_listed_and_shown():
    listed = subprocess.run([COMMAND, "configs", "list"], capture_output=True, text=True).stdout
    shown = subprocess.run([COMMAND, "configs", "show", "moving-shapes"], capture_output=True, text=True).stdout
    explained = subprocess.run([COMMAND, "configs", "show"], capture_output=True, text=True).stdout

    assert all(name in listed for name in ("moving-shapes", "videos", "videos-cpu"))
    assert "backbone: r3d_tiny" in shown and "temperature" in shown
    assert "temporal_negatives" in explained and "# videos per step" in explained


def test_the_version_is_printed():
    import hdc_keras

    printed = subprocess.run([COMMAND, "--version"], capture_output=True, text=True).stdout
    assert printed.strip() == hdc_keras.__version__


def test_help_is_much_faster_than_importing_tensorflow():
    def seconds(*command):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - began

    # A ratio within one run: the machine's own speed cancels.
    best_help = min(seconds(COMMAND, "--help") for _ in range(3))
    assert best_help < 0.25 * seconds(sys.executable, "-c", "import tensorflow")
