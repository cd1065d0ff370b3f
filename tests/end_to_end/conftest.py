"""Shared by the tests that drive the installed command."""

import pytest


@pytest.fixture
def refused(hdc_keras_command):
    """Run the command and check that it fails with an exit code and one screen that says what is expected."""

    def check(*arguments, code, says):
        done = hdc_keras_command(*arguments)
        assert done.code == code, done.out
        assert "Traceback" not in done.out and len(done.out.splitlines()) < 40
        flat = " ".join(done.out.split())
        for expected in says:
            assert expected in flat, done.out

    return check
