"""Fixtures for the tests that use the command line as a user does."""

import pytest


@pytest.fixture
def refused(hdc_keras_in_process):
    """Run a command and check that it fails with this exit code and a short message that says what is expected."""

    def check(*arguments, code, says):
        done = hdc_keras_in_process(*arguments)
        assert done.code == code, done.out
        assert "Traceback" not in done.out and len(done.out.splitlines()) < 40
        flat = " ".join(done.out.split())
        for expected in says:
            assert expected in flat, done.out

    return check
