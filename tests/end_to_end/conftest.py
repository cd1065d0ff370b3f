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


@pytest.fixture(scope="session")
def untrained_run(once):
    """The run directory of an untrained model, read-only."""
    from hdc_keras import HDC, Experiment, R3DTiny
    from hdc_keras.runs.directory import RunDirectory

    sections = {
        "data": {"frames": 8, "decode_size": [40, 40]},
        "views": {"size": 32},
        "model": {"backbone": "r3d_tiny"},
    }
    experiment = Experiment.model_validate(sections)

    def make(folder):
        directory = RunDirectory(folder / "run")
        directory.create(experiment)
        directory.checkpoints.save(HDC(R3DTiny(), experiment.views, experiment.contrast), 1, 1)

    return once("untrained", make) / "run"
