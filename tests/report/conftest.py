"""Runs with their reports, made once per test session and read-only."""

import pytest

from hdc_keras.report.job import build_report
from hdc_keras.runs.directory import RunDirectory
from tests.results.saved_runs import one_label_run, two_label_run


@pytest.fixture(scope="session")
def two_label_report(once, shapes_folder):
    """`report.html` of `two_label_run`, in its run directory."""
    return once("two-label-report", lambda folder: write_report(two_label_run(folder / "run"))) / "run" / "report.html"


@pytest.fixture(scope="session")
def one_label_report(once):
    """`report.html` of `one_label_run`, in its run directory."""
    return once("one-label-report", lambda folder: write_report(one_label_run(folder))) / "run" / "report.html"


def write_report(run):
    RunDirectory(run).write_text("report.html", build_report(RunDirectory(run)))
