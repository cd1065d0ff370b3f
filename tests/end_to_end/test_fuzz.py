"""Wrong command lines, drawn at random, are refused as a user can understand."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "fuzz_commands.py"


def test_forty_wrong_commands_are_refused():
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--count", "40", "--seed", "7"], capture_output=True, text=True, timeout=600
    )

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "seed 7: 40 wrong commands, 40 refused as they should be, 0 not" in done.stdout
