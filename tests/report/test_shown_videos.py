"""Which videos a report shows."""

import shutil

import pytest

from hdc_keras.data.from_experiment import load_videos
from hdc_keras.report.shown_videos import find_videos
from hdc_keras.runs.directory import RunDirectory
from tests.training.small_runs import experiment_on


@pytest.fixture
def run(tmp_path, class_folder):
    """A run that keeps the table of its videos."""
    run = RunDirectory(tmp_path / "run")
    run.create(experiment_on(class_folder), load_videos(experiment_on(class_folder)).records)
    return run


def sides(records):
    return {record.video_id: record.split for record in records}


def test_a_report_shows_the_split_that_the_run_was_trained_with(run, class_folder):
    experiment = run.experiment()
    kept = sides(load_videos(experiment).records)
    held_out = next(name for name, split in kept.items() if split == "test")
    removed = next(name for name, split in kept.items() if split == "train")
    (class_folder / removed).unlink()
    for number in range(4):
        shutil.copy(class_folder / held_out, class_folder / "across" / f"new-{number}.mp4")
    kept.pop(removed)
    drawn_anew = sides(load_videos(experiment).records)
    assert {name: drawn_anew[name] for name in kept} != kept

    shown = find_videos(experiment, [], run=run)

    assert sides(shown.records) == kept
    assert shown.on_map_are == "held-out videos"
    assert {record.video_id for record in shown.on_map} == {name for name, split in kept.items() if split == "test"}


def test_a_damaged_table_of_videos_is_said_in_the_report(run):
    (run.path / "videos.csv").write_text("id\n1\n")

    shown = find_videos(run.experiment(), [], run=run)

    assert "videos.csv is damaged" in shown.problem and not shown.records
