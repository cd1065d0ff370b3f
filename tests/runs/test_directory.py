import json

import pytest

from hdc_keras.errors import RunError
from hdc_keras.runs.directory import RunDirectory


def test_a_new_run_holds_its_config_and_environment(run, experiment):
    assert run.experiment() == experiment
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["packages"]["keras"] and environment["cores"] >= 1
    assert run.read_metrics() == []


def test_a_run_with_a_checkpoint_is_left_unchanged(run, experiment):
    (run.checkpoints.folder / "step-000000001.keras").touch()

    with pytest.raises(RunError, match="already holds a run"):
        run.create(experiment)


def test_a_run_without_a_checkpoint_may_be_replaced(run, experiment):
    other = experiment.model_copy(update={"seed": 7})

    run.create(other)

    assert run.experiment() == other


@pytest.mark.parametrize("is_file", [False, True])
def test_a_folder_that_is_not_a_run_is_refused(tmp_path, experiment, is_file):
    if is_file:
        (tmp_path / "other").write_text("a file")
    else:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "notes.txt").write_text("notes")

    with pytest.raises(RunError, match="is not a run directory"):
        RunDirectory(tmp_path / "other").create(experiment)


def test_a_folder_that_cannot_be_created_is_named(tmp_path, experiment):
    (tmp_path / "file").write_text("a file")

    with pytest.raises(RunError, match=r"file/run cannot be written \(Not a directory\)"):
        RunDirectory(tmp_path / "file" / "run").create(experiment)


def test_a_folder_without_a_config_holds_no_run(tmp_path):
    with pytest.raises(RunError, match=r"holds no run: there is no config\.yaml"):
        RunDirectory(tmp_path).experiment()


def test_a_table_has_the_columns_of_all_its_rows(run):
    run.write_table("metrics.csv", [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "knn_label": 0.5, "loss": 2.0}])

    assert run.metrics_file.read_text() == "epoch,loss,knn_label\n1,2.5,\n2,2.0,0.5\n"
    assert run.read_metrics()[1] == {"epoch": "2", "loss": "2.0", "knn_label": "0.5"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"epoch,loss\n1,2.5\n2,abc\n", 3),
        (b"epoch,loss\nx,2.5\n", 2),
        (b"step,loss\n1,2.5\n", 2),
        (b"epoch,loss\n1,2.5,3\n", 2),
        (b"\xff\xfe", 1),
    ],
)
def test_damaged_metrics_are_refused_with_file_and_line(run, content, line):
    run.metrics_file.write_bytes(content)

    with pytest.raises(
        RunError, match=rf"metrics\.csv, line {line}: expected numbers .* Restore the file, or delete it"
    ):
        run.read_metrics()


def test_a_file_that_cannot_be_written_is_named_with_the_way_to_resume(run):
    (run.path / "metrics.json").mkdir()

    with pytest.raises(RunError, match=rf"metrics\.json cannot be written .*pretrain --run {run.path} --resume"):
        run.write_text("metrics.json", "[]")
