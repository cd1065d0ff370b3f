"""Several processes that are killed while they extract features write what an undisturbed process writes."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_killed_processes_are_replaced_without_a_trace():
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--kills", "2", "--processes", "3"], capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 kills of 3 processes at once") == 2 and done.stdout.count("all equal") == 2
