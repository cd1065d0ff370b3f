"""From a run and labelled videos to a classifier, to named videos, and to an export."""

import csv
import json
import shutil

import pytest

from tests.conftest import call_command, run_command, write_class_folder

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="session")
def made(once, untrained_run):
    """A folder with `videos`, the classifier `made` of them, and `printed.txt`."""

    def make(folder):
        write_class_folder(folder / "videos")
        arguments = ("--run", untrained_run, "--data", "videos", "--out", "made", "--method", "frozen")
        done = run_command(folder, "finetune", *arguments)
        assert done.code == 0, done.out
        (folder / "printed.txt").write_text(done.out)

    return once("classifier", make)


def rows_of(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_classifier_is_made_and_scored(made):
    printed = " ".join((made / "printed.txt").read_text().split())
    facts = json.loads((made / "made" / "classifier.json").read_text())

    low, high = facts["test"]["interval"]
    assert f"Test: {facts['test']['top1']:.3f} of 2 videos right (95 % interval {low:.3f} to {high:.3f}" in printed
    assert "Chosen: a linear classifier on frozen features." in printed and "page: made/report.html" in printed
    assert facts["classes"] == ["across", "around"] and len(rows_of(made / "made" / "test-videos.csv")) == 2
    page = (made / "made" / "report.html").read_text()
    assert "How it was made" in page and "a linear classifier on the frozen features" in page


def test_repeating_the_command_changes_nothing_and_other_settings_are_refused(made, untrained_run):
    arguments = ("--run", untrained_run, "--data", "videos", "--out", "made", "--method", "frozen")
    before = (made / "made" / "classifier.keras").read_bytes()

    again = call_command(made, "finetune", *arguments)
    other = call_command(made, "finetune", *arguments, "--set", "evaluate.clips=3")

    assert again.code == 0 and "Test: " in again.out
    assert other.code == 1 and "holds another classifier" in " ".join(other.out.split())
    assert (made / "made" / "classifier.keras").read_bytes() == before


def test_videos_are_named(made, tmp_path):
    done = call_command(made, "predict", "--model", "made", "--data", "videos", "--out", tmp_path / "named.csv")

    assert done.code == 0, done.out
    rows = rows_of(tmp_path / "named.csv")
    assert len(rows) == 8 and {row["class_1"] for row in rows} <= {"across", "around"}
    assert "Classified 8 videos, 0 failed" in done.out and "Most likely: " in done.out
    # The answers for the test videos are those of `finetune`.
    by_path = {row["file"]: row for row in rows}
    for answer in rows_of(made / "made" / "test-videos.csv"):
        assert by_path[answer["file"]]["class_1"] == answer["predicted"]
        assert float(by_path[answer["file"]]["score_1"]) == pytest.approx(float(answer["score"]), abs=1e-3)


def test_a_long_video_is_named_part_by_part(made, tmp_path):
    arguments = (
        "--model",
        "made",
        "--data",
        "videos/across/0.mp4",
        "--sliding",
        "0.3s",
        "--out",
        tmp_path / "when.csv",
    )

    done = call_command(made, "predict", *arguments)

    assert done.code == 0, done.out
    assert "Parts of 0.3s are shorter than the clips of 0.6 s" in " ".join(done.out.split())
    times = [(row["start"], row["end"]) for row in rows_of(tmp_path / "when.csv")]  # 24 frames, 25 a second
    assert times == [("0", "0.3"), ("0.3", "0.6"), ("0.6", "0.96")]


def test_parts_of_the_work_make_the_same_file(made, tmp_path):
    arguments = ("predict", "--model", "made", "--data", "videos", "--out")

    whole = call_command(made, *arguments, tmp_path / "whole.csv")
    for part in ("1/2", "2/2"):
        done = call_command(made, *arguments, tmp_path / "parts.csv", "--part", part)
        assert done.code == 0 and not (tmp_path / "parts.csv").exists(), done.out
    done = call_command(made, *arguments, tmp_path / "parts.csv")

    assert whole.code == done.code == 0, done.out
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "parts.csv").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["parts.csv", "whole.csv"]


def test_a_classifier_is_exported(made, tmp_path):
    model = shutil.copytree(made / "made", tmp_path / "made")

    done = call_command(tmp_path, "export", "--model", "made", "--format", "keras")

    assert done.code == 0, done.out
    assert (model / "export" / "classifier.keras").exists()
    card = (model / "export" / "classifier.keras.md").read_text()
    assert "a classifier of 2 classes" in card and "step-000000001.keras" in card


def test_random_weights_are_trained_to_compare_with(made, tmp_path):
    small = (
        "data.frames=4",
        "data.decode_size=[20,24]",
        "views.size=16",
        "model.backbone=r3d_tiny",
        "views.focus=null",
    )
    settings = [word for value in (*small, "evaluate.finetune_epochs=1") for word in ("--set", value)]
    arguments = ("--run", "none", "--config", "videos-cpu", "--data", "videos", "--out", tmp_path / "scratch")

    done = run_command(made, "finetune", *arguments, *settings)

    assert done.code == 0, done.out
    facts = json.loads((tmp_path / "scratch" / "classifier.json").read_text())
    assert (facts["pretrained"], facts["chosen"], facts["run"]) == (False, "whole", None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("finetune --run none --data videos", "--run none needs --out"),
        ("finetune --run none --data videos --out x --method frozen", "leave out --method"),
        ("finetune --run made --data videos", "holds no checkpoint"),
        ("finetune --run RUN --data videos --config videos", "--config is for --run none"),
        ("finetune --run RUN --data videos --label motion", "Known: label."),
        ("predict --model made --data videos --out named.txt", "expected a local file ending in .csv or .parquet"),
        ("predict --model made --data videos --out printed.txt/x.csv", "cannot be written"),
        ("predict --model made --data videos --out x.csv --sliding 2", "with its unit"),
        ("predict --model made --data videos --out x.csv --sliding 0.01s", "shorter than a frame, which is 0.04 s"),
        ("predict --model made --data videos --out x.csv --set views.size=24", "cannot be changed now"),
        ("predict --model videos --data videos --out x.csv", "expected a folder that `hdc-keras finetune` made"),
        ("predict --model made --data videos --out x.csv --set data.limit=2", "read every video of a set"),
        ("export --model made --run RUN", "needs either --run RUN"),
        ("export", "needs either --run RUN"),
        ("export --model made --checkpoint best", "Leave them out with --model"),
        ("export --model videos", "expected a folder that `hdc-keras finetune` made"),
    ],
)
def test_wrong_use_is_explained(made, untrained_run, arguments, says):
    done = call_command(made, *[word.replace("RUN", str(untrained_run)) for word in arguments.split()])

    assert done.code in (1, 2) and "Traceback" not in done.out
    assert says in " ".join(done.out.split()), done.out
