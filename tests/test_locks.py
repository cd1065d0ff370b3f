import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from hdc_keras import locks
from hdc_keras.errors import RunError
from hdc_keras.locks import exclusive, is_held, lock_file, sole_use, try_exclusive

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


def test_looking_again_and_again_frees_a_lock_of_another_machine(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 0.6)
    file = lock_file(tmp_path / "part")
    holder.kill()
    holder.wait()
    file.write_text(file.read_text().replace("host=", "host=elsewhere-").replace("duration=60.0", "duration=0.6"))

    for _ in range(20):
        with try_exclusive(tmp_path / "part") as is_mine:
            if is_mine:
                return
        time.sleep(0.1)
    pytest.fail("the lock stayed")


def test_the_second_user_is_refused_with_the_owner_by_name(holder, tmp_path):
    with (
        pytest.raises(RunError, match=rf"x is being trained by process {holder.pid} on .* renewed its lock \d+ s ago"),
        sole_use(tmp_path / "part", "x is being trained"),
    ):
        pass
    assert is_held(tmp_path / "part")

    holder.kill()
    holder.wait()

    assert not is_held(tmp_path / "part")
    with sole_use(tmp_path / "part", "x is being trained"):
        assert lock_file(tmp_path / "part").exists()


def test_a_lock_that_was_not_renewed_for_long_is_waited_for(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 1.0)
    file = lock_file(tmp_path / "part")
    holder.kill()
    holder.wait()
    file.write_text(file.read_text().replace("host=", "host=elsewhere-").replace("duration=60.0", "duration=1.0"))
    os.utime(file, (time.time() - 100, time.time() - 100))
    warnings = []

    with sole_use(tmp_path / "part", "x is being trained", warnings.append):
        pass

    assert "x is being trained by process" in warnings[0]
    assert "waiting up to 1 s" in warnings[0]


def test_a_lock_whose_owner_died_before_signing_it_is_free_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 6.0)
    lock_file(tmp_path / "part").touch()

    with try_exclusive(tmp_path / "part") as is_mine:
        assert not is_mine  # its owner may just be writing
    with exclusive(tmp_path / "part"):
        assert lock_file(tmp_path / "part").read_text()
    assert not list(tmp_path.iterdir())


SUSPENDED = """
import sys, time
from pathlib import Path
from hdc_keras import locks
from hdc_keras.errors import RunError
locks.LEASE_S = 1.0
with locks.sole_use(Path(sys.argv[1]), "x is being trained") as require_lock:
    require_lock()
    print("locked", flush=True)
    sys.stdin.readline()
    try:
        require_lock()
    except RunError as error:
        print(error, flush=True)
    else:
        print("kept", flush=True)
    sys.stdin.readline()
print("left", flush=True)
"""


@pytest.fixture
def suspended(tmp_path, monkeypatch):
    """A process that was suspended for longer than its lease on `part`."""
    monkeypatch.setattr(locks, "LEASE_S", 1.0)
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED, tmp_path / "part"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.wait()


def go_on(process):
    """Let the process look at its lock, and return what it says."""
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def test_a_suspended_process_whose_lock_was_taken_over_is_told_and_leaves_the_new_lock_alone(suspended, tmp_path):
    with exclusive(tmp_path / "part"):
        said = go_on(suspended)
        assert f"x is being trained by process {os.getpid()} on" in said
        assert "did not renew its lock" in said and "The other process continues; this one stops" in said
        suspended.stdin.write("\n")
        suspended.stdin.flush()
        assert suspended.stdout.readline() == "left\n"
        assert lock_file(tmp_path / "part").exists()


def test_a_suspended_process_is_told_also_when_the_other_process_has_ended(suspended, tmp_path):
    with exclusive(tmp_path / "part"):
        pass

    said = go_on(suspended)

    assert "is gone: another process took over" in said and "has ended since" in said


def test_a_suspended_process_keeps_its_lock_if_nobody_took_it_over(suspended):
    time.sleep(1.5)

    assert go_on(suspended) == "kept\n"
