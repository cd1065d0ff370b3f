import json

import pytest

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import RunError
from hdc_keras.probes.protocol import Answer, Judgement
from hdc_keras.results.outcomes import Outcome
from hdc_keras.results.store import read_results, require_results, write_result
from hdc_keras.runs.directory import RunDirectory
from tests.results.saved_runs import write_run

RESULT = {"protocol": "retrieval", "version": 1, "dataset": "moving-shapes", "metrics": {}}
TEST_VIDEOS = [VideoRecord(f"{name}.mp4", name, {"motion": "left"}, "test") for name in ("x", "y")]


def outcome(source, predicted=("left", "right"), neighbours=(("t1", "t2"), ("t2", "t1"))):
    judgement = Judgement({"R@1": 0.5}, list(predicted), [list(ids) for ids in neighbours])
    return Outcome("metrics", "1", Answer("motion", source, 3, judgement), TEST_VIDEOS)


def test_results_are_read_as_they_were_written(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run"))

    write_result(run, "retrieval-moving-shapes", RESULT, [outcome("features"), outcome("P5")])

    (result,) = require_results(run.path)
    assert (result.name, result.protocol, result.dataset) == ("retrieval-moving-shapes", "retrieval", "moving-shapes")
    assert result.values == RESULT
    # Predictions are saved for all levels together, not for single levels.
    first, second = result.judged("metrics", "motion")
    assert result.videos == (first, second) and {first.source, second.source} == {"features"}
    assert (first.video_id, first.label, first.predicted, first.is_right) == ("x", "left", "left", True)
    assert (second.video_id, second.predicted, second.is_right) == ("y", "right", False)
    assert (first.split, first.seed, first.neighbours) == ("1", "3", ("t1", "t2"))
    assert not result.judged("random_weights", "motion") and not result.judged("metrics", "motion", "fine-tuned")


def test_a_protocol_without_predictions_has_no_list_of_videos(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run"))

    write_result(run, "lowlabel-moving-shapes", RESULT, [outcome("features", (), ())])

    assert [file.name for file in (run.path / "results").iterdir()] == ["lowlabel-moving-shapes.json"]
    assert read_results(run.path)[0].videos == ()


def test_a_run_that_was_never_evaluated_has_no_results(tmp_path):
    run = write_run(tmp_path / "run")

    assert read_results(run) == []
    with pytest.raises(RunError, match="has no results"):
        require_results(run)
    with pytest.raises(RunError, match="holds no run"):
        read_results(tmp_path)


def test_a_list_of_videos_without_a_column_is_an_error(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "results").mkdir()
    (run / "results" / "knn-data.json").write_text(json.dumps(RESULT))
    (run / "results" / "knn-data.videos.csv").write_text("network,column\nmetrics,label\n")

    with pytest.raises(RunError, match=r"knn-data\.videos\.csv: missing columns: label, neighbours, predicted"):
        read_results(run)


def test_a_list_of_videos_that_is_not_text_is_an_error(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "results").mkdir()
    (run / "results" / "knn-data.json").write_text(json.dumps(RESULT))
    (run / "results" / "knn-data.videos.csv").write_bytes(b"\xff")

    with pytest.raises(RunError, match=r"knn-data\.videos\.csv: cannot be read as a CSV file .*Evaluate the run again"):
        read_results(run)
