"""Paths given as options are taken literally, whatever YAML would make of them."""

import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-0.1.0"
NAMES = ["clips #1", "has: colon", "[x]", "true", "1e3", "~"]


@pytest.mark.parametrize("name", NAMES)
def test_doctor_reads_the_folder_of_that_name(tmp_path, class_folder, hdc_keras_in_process, name):
    (tmp_path / name.partition(" ")[0]).mkdir()  # `clips`, which YAML would read
    class_folder.rename(tmp_path / name)

    done = hdc_keras_in_process("doctor", "--data", name)

    assert done.code == 0 and "8 of 8 videos can be decoded" in done.out, done.out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "command",
    [
        ["pretrain", "--config", "videos", "--run", "new"],
        ["prepare", "--out", "prepared"],
        ["evaluate", "--run", OLD_RUN, "--protocol", "knn"],
        ["embed", "--run", OLD_RUN, "--out", "videos.parquet"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_looks_into_the_folder_of_that_name(tmp_path, refused, name, command):
    (tmp_path / name).mkdir()

    refused(*command, "--data", name, code=1, says=[f"{tmp_path / name}: contains no videos"])


@pytest.mark.parametrize("name", ["clips #1", "has: colon"])
def test_init_from_reads_the_run_of_that_name(tmp_path, smoke_run, hdc_keras_command, name):
    shutil.copytree(smoke_run[0], tmp_path / name)

    done = hdc_keras_command("pretrain", "--smoke", "--dry-run", "--init-from", name)

    assert done.code == 0 and "Traceback" not in done.out, done.out
