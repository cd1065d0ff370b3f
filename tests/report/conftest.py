"""Runs with their reports, made once per test session and read-only."""

import pytest

from hdc_keras.classification.directory import ClassifierDirectory
from hdc_keras.config import DataConfig
from hdc_keras.data.records import read_records
from hdc_keras.report.classifier_page import build_classifier_page
from hdc_keras.report.job import build_report
from hdc_keras.report.search_page import build_search_page
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.search.found import FoundVideo, Group, Row
from tests.classification.small_classifier import ANSWERS, EXPERIMENT, FACTS, small_classifier
from tests.results.saved_runs import one_label_run, two_label_run


@pytest.fixture(scope="session")
def two_label_report(once, shapes_folder):
    """`report.html` of `two_label_run`, in its run directory."""
    return once("two-label-report", lambda folder: write_report(two_label_run(folder / "run"))) / "run" / "report.html"


@pytest.fixture(scope="session")
def one_label_report(once):
    """`report.html` of `one_label_run`, in its run directory."""
    return once("one-label-report", lambda folder: write_report(one_label_run(folder))) / "run" / "report.html"


@pytest.fixture(scope="session")
def search_page(once, shapes_folder):
    """`found.html`: eleven videos like one query, and the same again for another."""

    def make(folder):
        records = read_records(shapes_folder)[:12]
        found = [FoundVideo(record.video_id, record.label, 0.9) for record in records[1:]]
        rows = [Row(f"Alike in {name}", records[0].video_id, found) for name in ("appearance", "motion")]
        data = DataConfig(frames=8, decode_size=(40, 40))
        groups = [Group("one", rows), Group("two", rows)]
        page = build_search_page(folder / "v.parquet", "Videos", "The nearest.", groups, records, data)
        (folder / "found.html").write_text(page)

    return once("search-page", make) / "found.html"


@pytest.fixture(scope="session")
def classifier_page(once, shapes_folder):
    """`report.html` of a classifier that was trained, with three answers of four right."""

    def make(folder):
        records = read_records(shapes_folder)[:4]
        answers = [{**row, "video_id": one.video_id} for row, one in zip(ANSWERS, records, strict=True)]
        training = folder / "metrics.csv"
        training.write_text(
            "epoch,loss,top1,val_loss,val_top1\n1,1.1,0.3,1.0,0.4\n2,0.9,0.5,0.9,0.5\n3,0.7,0.7,1.0,0.6\n"
        )
        directory = ClassifierDirectory(folder)
        directory.write(small_classifier(), EXPERIMENT, FACTS, answers, training)
        directory.page_file.write_text(build_classifier_page(directory, records))

    return once("classifier-page", make) / "report.html"


def write_report(run):
    RunDirectory(run).write_text("report.html", build_report(RunDirectory(run)))
