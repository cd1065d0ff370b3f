"""What a user gets for bad input: a short message that says what to do, an exit code, and nothing written."""

import shutil
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-0.1.0"
STARTING = [
    ["doctor"],
    ["pretrain", "--smoke"],
    ["evaluate", "--run", OLD_RUN, "--protocol", "knn"],
    ["embed", "--run", OLD_RUN, "--out", "out.parquet"],
    ["report", "--run", OLD_RUN],
    ["export", "--run", OLD_RUN],
]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "train.epoch=3"], ["unknown key `train.epoch`", "Did you mean `train.epochs`?"]),
        (["--set", "train.epochs=many"], ["`train.epochs`", "valid integer", "Received: 'many'"]),
        (["--set", "train.epochs"], ["expected section.key=value"]),
        (["--config", "moving-shape"], ["no config of that name", "Did you mean `moving-shapes`?"]),
        (["--preset", "coupld"], ["preset `coupld`", "Did you mean `coupled`?"]),
        (["--set", "seed=4294967296"], ["`seed`", "less than or equal to 4294967295", "Received: 4294967296"]),
        (["--resume"], ["--resume continues the run that --run names", "needs --run"]),
        (["--resume", "--run", "runs/mine", "--dry-run"], ["--resume", "excludes --dry-run"]),
        (["--epochs", "3"], ["No such option"]),
        (
            ["--set", "model.backbone=r3d81"],
            ["`model.backbone`", "'videomae_vit_b' or 'videomae_vit_tiny'", "Did you mean `r3d18`?"],
        ),
    ],
)
def test_wrong_usage_exits_with_2_and_starts_nothing(refused, tmp_path, arguments, says):
    refused("pretrain", *arguments, code=2, says=says)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder(refused, tmp_path):
    refused("pretrain", "--data", "nowhere", code=1, says=["nowhere", "no such file or folder"])
    assert not list(tmp_path.iterdir())


def test_an_empty_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("pretrain", "--data", "empty", code=1, says=["contains no videos", ".mp4"])
    assert not (tmp_path / "runs").exists()


def test_a_class_with_one_video(refused, class_folder, tmp_path):
    (class_folder / "lonely").mkdir()
    (class_folder / "across" / "0.mp4").rename(class_folder / "lonely" / "0.mp4")
    says = ["class `lonely` has 1 video(s)", "data.holdout=0"]
    refused("pretrain", "--data", class_folder, code=1, says=says)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["not a video", "truncated"])
def test_files_that_do_not_decode(refused, class_folder, kind):
    for path in (class_folder / "across").glob("*.mp4"):
        content = path.read_bytes()
        path.write_bytes(b"text" if kind == "not a video" else content[: len(content) // 2])
    # The command runs in the test's process, because it is refused before the first step.
    refused(
        *("pretrain", "--data", class_folder, "--config", "videos-cpu", "--smoke", "--run", "run"),
        code=1,
        says=["videos cannot be decoded", "across", "data.max_failed_share", "Repair or remove them"],
    )


def test_a_folder_that_holds_something_else(refused, class_folder):
    before = sorted(class_folder.rglob("*"))
    refused("pretrain", "--run", class_folder, code=1, says=["exists and is not a run directory"])
    assert sorted(class_folder.rglob("*")) == before


def test_a_folder_that_holds_no_run(refused):
    for command in (["evaluate", "--protocol", "knn"], ["export"], ["report"]):
        refused(*command, "--run", "nowhere", code=1, says=["nowhere holds no run"])


def test_a_run_directory_that_holds_a_run(refused, smoke_run):
    run, _ = smoke_run
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    refused("pretrain", "--run", run, code=1, says=["already holds a run", "--resume"])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_options_that_describe_another_run_than_the_one_that_is_resumed(refused, smoke_run):
    run, _ = smoke_run
    options = ("--smoke", "--set", "train.batch_size=8", "--set", "seed=3")
    refused(
        "pretrain", "--run", run, "--resume", *options, code=2, says=["another run", "train.batch_size 8", "seed 3"]
    )


def test_an_unknown_protocol_format_or_checkpoint(refused, smoke_run):
    run, _ = smoke_run
    refused("evaluate", "--run", run, "--protocol", "lineal", code=2, says=["`lineal`", "linear"])
    refused("evaluate", "--run", run, "--protocol", "knn", "--checkpoint", "last", code=2, says=["newest or best"])
    refused("evaluate", "--run", run, "--protocol", "knn", "--splits", "both", code=2, says=["own or all"])
    refused("export", "--run", run, "--format", "onyx", code=2, says=["onyx", "saved_model"])
    refused("export", "--run", run, "--checkpoint", "last", code=2, says=["`last`", "newest or best"])
    refused("report", "--run", run, "--out", "report.pdf", code=2, says=["report.pdf", ".html"])


def test_an_export_that_is_in_the_way_is_left_alone(refused, smoke_run, tmp_path):
    (tmp_path / "there").mkdir()
    refused("export", "--run", smoke_run[0], "--out", "there", code=1, says=["there exists"])
    assert not list((tmp_path / "there").iterdir())


def test_a_checkpoint_of_another_architecture(refused, smoke_run, tmp_path):
    shutil.copytree(smoke_run[0] / "checkpoints", tmp_path / "changed" / "checkpoints")
    config = (smoke_run[0] / "config.yaml").read_text()
    (tmp_path / "changed" / "config.yaml").write_text(config.replace("r3d_tiny", "r3d18"))
    says = ["a different model", "config has r3d18; checkpoint has r3d_tiny"]
    refused("evaluate", "--run", "changed", "--protocol", "knn", code=1, says=says)


@pytest.mark.parametrize("command", STARTING, ids=lambda command: command[0])
@pytest.mark.parametrize("backend", ["mxnet", "jacks"])
def test_an_unknown_backend(refused, monkeypatch, command, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    refused(*command, code=2, says=["KERAS_BACKEND: expected one of tensorflow, jax, torch.", f"Received: {backend}."])


def test_a_backend_that_is_unknown_is_refused_before_it_is_imported(hdc_keras_command, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "mxnet")
    for command in STARTING:
        done = hdc_keras_command(*command)
        assert done.code == 2 and "Error: KERAS_BACKEND: expected one of" in done.out, done.out
        assert "Traceback" not in done.out, done.out


@pytest.mark.parametrize(
    ("backend", "install"),
    [("jax", "'hdc-keras[jax]'"), ("torch", "'hdc-keras[torch]'"), ("tensorflow", "tensorflow")],
)
def test_a_backend_that_is_not_installed(refused, monkeypatch, backend, install):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setitem(sys.modules, backend, None)
    says = [f"KERAS_BACKEND: {backend} is not installed. Install it with: pip install {install}, or set KERAS_BACKEND"]
    refused("doctor", code=2, says=says)


def test_a_backend_of_keras_config_file_that_is_unknown(refused, monkeypatch, tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "mxnet"}')
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    refused("doctor", code=2, says=["keras.json: expected one of tensorflow, jax, torch. Received: mxnet."])


def test_names_that_are_too_long_and_empty_options_are_refused(refused):
    name = "a" * 300
    for arguments in (("doctor", "--data", name), ("evaluate", "--run", name, "--protocol", "knn")):
        refused(*arguments, code=2, says=["this name is too long for the file system"])
    refused("prepare", "--out", name, "--verify", code=2, says=["this name is too long for the file system"])
    for option in ("--config", "--preset", "--init-from"):
        refused("pretrain", option, "", code=2, says=[f"{option}: received an empty text"])
    refused("configs", "show", "", code=2, says=["no such file, and no config of that name"])


def test_a_folder_for_shards_that_cannot_be_created_is_named(refused, class_folder_once):
    out = class_folder_once / "across" / "0.mp4" / "out"
    refused("prepare", "--data", class_folder_once, "--out", out, code=1, says=["cannot be written (Not a directory)"])
