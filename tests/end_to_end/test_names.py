"""Names that look like markup of rich, or like an emoji, are printed as they are."""

import csv
import shutil

import pytest

pytestmark = pytest.mark.end_to_end

VIDEO = "Fight [dQw4w9WgXcQ].mp4"
DAMAGED = "damaged [red] :smile:.mp4"
# A folder `a[` that holds a folder `b]`.
NAME = "r/a[/b]"


@pytest.fixture
def videos(tmp_path, class_folder):
    """Eight videos and a damaged one in a folder, in classes and under names that look like markup."""
    folder = tmp_path / NAME
    folder.parent.mkdir(parents=True)
    class_folder.rename(folder)
    (folder / "across").rename(folder / "[bold]")
    (folder / "[bold]" / "0.mp4").rename(folder / "[bold]" / VIDEO)
    (folder / "[bold]" / DAMAGED).write_text("not a video")
    return NAME


@pytest.fixture
def run(tmp_path, untrained_run):
    """A run in a folder whose name looks like markup."""
    shutil.copytree(untrained_run, tmp_path / "runs" / NAME)
    return f"runs/{NAME}"


def test_doctor_and_prepare(videos, hdc_keras_in_process):
    doctor = hdc_keras_in_process("doctor", "--data", videos)
    prepared = hdc_keras_in_process("prepare", "--data", videos, "--out", f"out/{NAME}", "--short-side", "32")

    assert "│ [bold]" in doctor.out and DAMAGED in doctor.out, doctor.out
    assert prepared.code == 0 and f"[bold]/{DAMAGED}: " in prepared.out, prepared.out
    assert f"shards, in out/{NAME}" in prepared.out and f"Next: hdc-keras pretrain --data out/{NAME}" in prepared.out


def test_errors(refused):
    refused("report", "--run", NAME, code=1, says=[f"Error: {NAME} holds no run"])
    refused("pretrain", "--data", NAME, code=1, says=[NAME])
    refused("pretrain", "--set", "train.[bold]=3", code=2, says=["train.[bold]"])
    refused("pretrain", "--set", "train.epochs=[/b]", code=2, says=["['/b']"])
    refused("pretrain", NAME, code=2, says=[f"({NAME})"])
    refused("pretrain", "--[bold]", code=2, says=["--[bold]"])
    refused("configs", "show", "[/b]", code=2, says=["[/b]"])


def test_a_run_is_evaluated_compared_embedded_reported_and_exported(tmp_path, videos, run, hdc_keras_in_process):
    with (tmp_path / videos / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label_[bold]", "label_[x]"])
        for path in sorted((tmp_path / videos).rglob("*.mp4")):
            name = path.relative_to(tmp_path / videos).as_posix()
            writer.writerow([name, path.parent.name, path.parent.name])
    data = f"{videos}/manifest.csv"
    damage_allowed = ("--set", "data.max_failed_share=0.5")

    evaluated = hdc_keras_in_process(
        *("evaluate", "--run", run, "--data", data, "--protocol", "knn"),
        *("--set", "evaluate.clips=1", "--set", "data.holdout=0.5"),
        *damage_allowed,
    )
    assert evaluated.code == 0, evaluated.out
    assert "[bold] " in evaluated.out and "[x] " in evaluated.out and f"{DAMAGED}: " in evaluated.out
    assert "chance: [bold] 0." in " ".join(evaluated.out.split()) and f"Results are in {run}/results" in evaluated.out

    compared = hdc_keras_in_process("compare", run, run, "--out", "[bold].md")
    assert compared.code == 0, compared.out
    assert "[x]" in compared.out and "Wrote [bold].md" in compared.out, compared.out

    embedded = hdc_keras_in_process("embed", "--run", run, "--data", data, "--out", "[/b].parquet", *damage_allowed)
    assert embedded.code == 0, embedded.out
    assert "failed: [/b].parquet, from" in embedded.out and f"{DAMAGED}: " in embedded.out

    exported = hdc_keras_in_process("export", "--run", run, "--format", "keras")
    assert exported.code == 0 and f"Wrote {run}/export/backbone.keras from" in exported.out, exported.out
    assert f"Model card: {run}/export/backbone.keras.md" in exported.out

    reported = hdc_keras_in_process("report", "--run", run, "--out", "[bold].html")
    assert reported.code == 0 and "Wrote [bold].html, " in reported.out, reported.out


def test_names_of_progress_bars():
    from hdc_keras_cli.console import NamedBars, console, progress_bar

    bar = progress_bar()
    NamedBars(bar)(NAME, 1, 2)
    bar.update(bar.task_ids[0], note="[bold]")
    with console.capture() as captured:
        console.print(bar.get_renderable())

    assert NAME in captured.get() and "[bold]" in captured.get()
