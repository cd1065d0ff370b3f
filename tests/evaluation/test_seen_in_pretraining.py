"""Test videos that pretraining saw are counted, in what `evaluate` prints and in its result."""

import json
import shutil
from dataclasses import replace

import pytest

from hdc_keras.data.from_experiment import load_videos
from hdc_keras.data.preparing import prepare
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.models import build_model
from tests.evaluation.conftest import CLASSES, experiment_on


@pytest.fixture(scope="module")
def trained_on_split_1(ucf101, tmp_path_factory):
    """A run that keeps the table of its videos: 12 training videos of groups 2 and 3, 6 test videos of group 1."""
    experiment = experiment_on(ucf101)
    run = RunDirectory(tmp_path_factory.mktemp("trained") / "run")
    run.create(experiment, load_videos(experiment).records)
    run.checkpoints.save(build_model(experiment), 1, 1)
    return run


@pytest.fixture
def counted(trained_on_split_1, hdc_keras_in_process):
    """Evaluate the run with the command. Returns `seen_in_pretraining` of its result, and the lines that say it."""

    def evaluate(*arguments):
        results = trained_on_split_1.path / "results"
        before = set(results.glob("*.json"))
        done = hdc_keras_in_process("evaluate", "--run", trained_on_split_1.path, "--protocol", "knn", *arguments)
        assert done.code == 0, done.out
        (written,) = set(results.glob("*.json")) - before
        said = [line for line in done.out.splitlines() if "were in pretraining" in line]
        return json.loads(written.read_text())["seen_in_pretraining"], said

    return evaluate


def test_the_test_videos_of_the_run_were_not_in_pretraining(counted):
    assert counted("--set", "evaluate.clips=1") == ({"1": {"test_videos": 0, "of": 6}}, [])


@pytest.mark.parametrize("moved", [False, True])
def test_all_official_splits_of_the_set_that_the_run_was_trained_on(counted, ucf101, tmp_path, moved):
    other = ["--data", shutil.copytree(ucf101, tmp_path / "moved")] if moved else []

    seen, said = counted("--splits", "all", *other, "--set", f"evaluate.clips={3 + moved}")

    assert seen == {
        "1": {"test_videos": 0, "of": 6},
        "2": {"test_videos": 6, "of": 6},
        "3": {"test_videos": 6, "of": 6},
    }
    assert said == [f"6 of 6 test videos of split {number} were in pretraining." for number in (2, 3)]


@pytest.fixture
def partly_seen(ucf101, tmp_path):
    """A folder of other names: its test videos are the third clips, 2 of which the run was not trained on.

    One more is not a video of the run, although its name and its size are those of one.
    """
    folder = tmp_path / "other"
    for side, clips in (("train", (1, 2)), ("test", (3,))):
        for label in CLASSES:
            (folder / side / label).mkdir(parents=True)
            for clip in clips:
                for group in (1, 2, 3):
                    file = ucf101 / "UCF-101" / label / f"v_{label}_g{group:02d}_c{clip:02d}.avi"
                    shutil.copy(file, folder / side / label)
    file = folder / "test" / "Archery" / "v_Archery_g02_c03.avi"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return folder


def test_another_folder_with_some_of_the_same_files(counted, partly_seen):
    seen, said = counted("--data", partly_seen)

    assert list(seen.values()) == [{"test_videos": 3, "of": 6}]
    assert said == ["3 of 6 test videos were in pretraining."]


def test_copies_under_other_names(counted, partly_seen):
    for file in partly_seen.rglob("*.avi"):
        file.rename(file.with_name(f"copy of {file.name}"))

    seen, _ = counted("--data", partly_seen, "--set", "evaluate.clips=5")

    assert list(seen.values()) == [{"test_videos": 3, "of": 6}]


def test_a_prepared_set_of_the_files_that_the_run_was_trained_on(counted, trained_on_split_1, ucf101, tmp_path):
    records = load_videos(experiment_on(ucf101)).records
    swapped = [replace(record, split="train" if record.split == "test" else "test") for record in records]
    prepare(swapped, tmp_path / "prepared", size=(20, 24), processes=1)

    seen, said = counted("--data", tmp_path / "prepared")

    assert list(seen.values()) == [{"test_videos": 12, "of": 12}]
    assert said == ["12 of 12 test videos were in pretraining."]


def test_a_run_without_a_table_says_that_it_does_not_know(run, hdc_keras_in_process):
    done = hdc_keras_in_process("evaluate", "--run", run.path, "--protocol", "knn", "--set", "evaluate.clips=1")

    assert done.code == 0, done.out
    assert "Whether pretraining saw the test videos is unknown: the run keeps no table" in done.out
