"""`--time-budget`, and what is said about short runs."""

import pytest

pytestmark = pytest.mark.end_to_end

SMALL = ("--set", "train.batch_size=4", "--set", "views.size=16", "--set", "data.frames=4")


def test_a_time_budget_becomes_the_steps_of_the_run_which_a_resumed_run_keeps(
    hdc_keras_in_process, class_folder, tmp_path, monkeypatch
):
    # How many steps fit depends on the machine and its load; tests/training/test_length.py measures them.
    import hdc_keras_cli.pretrain_job

    budgets = []
    monkeypatch.setattr(
        hdc_keras_cli.pretrain_job, "steps_within", lambda seconds, *others: budgets.append(seconds) or (5, 0.25)
    )
    line = ["pretrain", "--data", class_folder, "--config", "videos-cpu", *SMALL, "--time-budget", "40s"]
    line += ["--run", tmp_path / "run", "--resume"]

    first = hdc_keras_in_process(*line)
    assert first.code == 0, first.out
    steps = 5
    assert budgets == [40] and "a step takes 0.25 s on this machine, so the run takes 5 steps" in first.out
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert f"steps: {steps}\n" in config and "epochs: null" in config
    assert f"Done: {steps:,} steps" in first.out

    again = hdc_keras_in_process(*line)
    assert again.code == 0 and f"is finished after {steps:,} steps" in again.out, again.out
    # With the same line, a run that was stopped goes on to the length that it has.
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*.keras"))
    newest.unlink()
    goes_on = hdc_keras_in_process(*line)
    assert goes_on.code == 0 and "--time-budget: the run keeps its length of 5 steps" in goes_on.out, goes_on.out
    assert len(budgets) == 1


@pytest.mark.parametrize("other", [["--smoke"], ["--set", "train.epochs=3"], ["--set", "train.steps=3"]])
def test_a_time_budget_excludes_another_length(refused, other):
    refused("pretrain", *other, "--time-budget", "5m", code=2, says=["--time-budget and", "both give the length"])


def test_a_run_of_few_steps_is_announced(hdc_keras_in_process, class_folder):
    line = ("pretrain", "--data", class_folder, "--config", "videos-cpu", *SMALL, "--dry-run")

    few, enough = (hdc_keras_in_process(*line, "--set", f"train.steps={steps}") for steps in (999, 1000))
    assert "This run takes only 999 steps" in few.out and "--set train.steps=" in few.out, few.out
    assert "This run takes only" not in enough.out and "1,000 steps, about" in enough.out, enough.out
