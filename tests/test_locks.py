import errno
import subprocess
import sys
import time

import pytest

from hdc_keras import locks
from hdc_keras.errors import RunError
from hdc_keras.locks import exclusive, lock_file, try_exclusive

HOLDER = """
import sys, time
from pathlib import Path
from hdc_keras.locks import try_exclusive
with try_exclusive(Path(sys.argv[1])) as is_mine:
    print(is_mine, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock of `part`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "part"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()


def test_one_process_has_the_lock_and_its_death_frees_it(holder, tmp_path):
    with try_exclusive(tmp_path / "part") as is_mine:
        assert not is_mine
    with try_exclusive(tmp_path / "other part") as is_mine:
        assert is_mine

    holder.kill()
    holder.wait()

    with try_exclusive(tmp_path / "part") as is_mine:
        assert is_mine
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_machine_is_free_when_nobody_renews_it(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 1.0)
    file = lock_file(tmp_path / "part")
    holder.kill()
    holder.wait()
    text = file.read_text().replace("host=", "host=elsewhere-").replace("duration=60.0", "duration=1.0")
    file.write_text(text)  # the process id says nothing about a process elsewhere

    with try_exclusive(tmp_path / "part") as is_mine:
        assert not is_mine
    began = time.monotonic()
    with exclusive(tmp_path / "part"):
        assert time.monotonic() - began > 0.5


def test_a_lock_is_renewed_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 0.6)
    with try_exclusive(tmp_path / "part"):
        first = lock_file(tmp_path / "part").stat().st_mtime_ns
        time.sleep(0.7)
        assert lock_file(tmp_path / "part").stat().st_mtime_ns > first


def test_an_error_in_the_block_frees_the_lock_and_keeps_its_own_type(tmp_path):
    with pytest.raises(OSError, match="full"), try_exclusive(tmp_path / "part"):
        raise OSError(errno.ENOSPC, "full")

    assert not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(RunError, match=r"\.part\.lock cannot be written"), try_exclusive(tmp_path / "file" / "part"):
        pass
