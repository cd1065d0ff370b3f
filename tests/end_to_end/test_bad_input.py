"""What a user gets for bad input: one screen that says what to do, an exit code, and nothing overwritten."""

import pytest

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "train.epoch=3"], ["unknown key `train.epoch`", "Did you mean `train.epochs`?"]),
        (["--set", "train.epochs=many"], ["`train.epochs`", "valid integer", "Received: 'many'"]),
        (["--set", "train.epochs"], ["expected section.key=value"]),
        (["--config", "moving-shape"], ["no config of that name", "Did you mean `moving-shapes`?"]),
        (["--preset", "coupld"], ["no preset `coupld`", "Did you mean `coupled`?"]),
        (["--resume"], ["--resume continues the run that --run names"]),
        (["--epochs", "3"], ["No such option"]),
        (["--set", "model.backbone=r3d81"], ["`model.backbone`", "'s3d' or 's3d_tiny'", "Did you mean `r3d18`?"]),
    ],
)
def test_wrong_usage_exits_with_2_and_starts_nothing(refused, tmp_path, arguments, says):
    refused("pretrain", *arguments, code=2, says=says)
    assert not (tmp_path / "runs").exists()


def test_a_missing_folder(refused, tmp_path):
    refused("pretrain", "--data", "nowhere", code=1, says=["nowhere", "no such file or folder"])
    assert not (tmp_path / "runs").exists()


def test_an_empty_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("pretrain", "--data", "empty", code=1, says=["holds no video", ".mp4"])
    assert not (tmp_path / "runs").exists()


def test_a_class_with_one_video(refused, class_folder, tmp_path):
    (class_folder / "lonely").mkdir()
    (class_folder / "across" / "0.mp4").rename(class_folder / "lonely" / "0.mp4")
    says = ["class `lonely` has 1 video(s)", "data.holdout=0"]
    refused("pretrain", "--data", class_folder, code=1, says=says)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["no video", "truncated"])
def test_files_that_do_not_decode(refused, class_folder, kind):
    for path in (class_folder / "across").glob("*.mp4"):
        content = path.read_bytes()
        path.write_bytes(b"text" if kind == "no video" else content[: len(content) // 2])
    arguments = ["pretrain", "--data", class_folder, "--config", "videos-cpu", "--smoke", "--run", "run"]
    refused(
        *arguments,
        code=1,
        says=["videos cannot be decoded", "across", "data.max_failed_share", "Repair or remove them"],
    )


def test_a_folder_that_holds_something_else(refused, class_folder):
    refused("pretrain", "--run", class_folder, code=1, says=["exists and is no run"])


def test_a_run_that_is_none(refused):
    for command in (["evaluate", "--protocol", "knn"], ["export"], ["pretrain", "--resume"]):
        refused(*command, "--run", "nowhere", code=1, says=["nowhere holds no run"])
