import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from hdc_keras.data.from_experiment import load_videos
from hdc_keras.errors import ConfigError, RunError
from hdc_keras.evaluation.splits import load_splits
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.videos import own_videos, read_videos_of, require_same_course, seen_in_pretraining, write_videos
from tests.conftest import write_class_folder
from tests.training.small_runs import changed, experiment_on


@pytest.fixture
def folder(tmp_path):
    return write_class_folder(tmp_path / "videos")


@pytest.fixture
def kept(tmp_path, folder):
    """A run that keeps the table of its videos."""
    experiment = experiment_on(folder)
    run = RunDirectory(tmp_path / "run")
    run.create(experiment, load_videos(experiment).records)
    return run


def splits_of(records):
    return {record.video_id: record.split for record in records}


def test_the_table_gives_the_videos_back(kept):
    records = load_videos(kept.experiment()).records

    assert [row.record for row in read_videos_of(kept.path)] == records
    assert all(row.size > 0 for row in read_videos_of(kept.path))


def test_a_name_with_commas_quotes_and_line_breaks_survives(tmp_path, kept):
    record = replace(
        load_videos(kept.experiment()).records[0], video_id='a, "b"\nc', labels={"sport": "x;y"}, group="g"
    )
    write_videos(tmp_path / "videos.csv", [record])

    assert read_videos_of(tmp_path)[0].record == record


def test_evaluation_keeps_the_split_although_videos_were_removed_and_added(kept, folder):
    experiment = kept.experiment()
    before = splits_of(load_videos(experiment).records)
    removed = next(name for name, split in before.items() if split == "train")
    shutil.copy(folder / removed, folder / removed.replace(removed.rpartition("/")[2], "0-new.mp4"))
    (folder / removed).unlink()

    for seed in range(5):
        splits, notes = load_splits(experiment.model_copy(update={"seed": seed}), "own", run=kept)
        assert splits_of(splits["1"]) == {name: split for name, split in before.items() if name != removed}
    assert any(f"videos of the run that no longer exist are left out: 1 ({removed})" in note for note in notes)
    assert any("videos that are new since the run began are left out: 1" in note for note in notes)


def test_a_key_that_would_draw_another_split_is_refused(kept):
    with pytest.raises(ConfigError, match=r"data\.holdout: .* keeps the split .* from 0\.25 to 0\.5"):
        own_videos(kept.path, changed(kept.experiment(), data={"holdout": 0.5}))


def test_a_run_without_a_table_says_that_its_split_was_drawn_anew(tmp_path, folder):
    run = RunDirectory(tmp_path / "old")
    run.create(experiment_on(folder))

    videos = own_videos(run.path, run.experiment())

    assert splits_of(videos.records) == splits_of(load_videos(run.experiment()).records)
    assert "split was drawn anew" in videos.notes[-1]
    assert seen_in_pretraining(run.path, videos.records) is None


def test_test_videos_that_pretraining_saw_are_counted_also_in_a_moved_copy(kept, folder, tmp_path):
    records = load_videos(kept.experiment()).records
    test = sum(record.split == "test" for record in records)
    everything = [replace(record, split="test") for record in records]
    shutil.copytree(folder, tmp_path / "moved")
    moved = [replace(record, split="test") for record in load_videos(experiment_on(tmp_path / "moved")).records]
    renamed = [replace(record, video_id=f"other {record.video_id}") for record in everything]

    seen = {"test_videos": len(records) - test, "of": len(records)}
    assert seen_in_pretraining(kept.path, records) == {"test_videos": 0, "of": test}
    assert seen_in_pretraining(kept.path, everything) == seen
    assert seen_in_pretraining(kept.path, moved) == seen
    assert seen_in_pretraining(kept.path, renamed) == seen


def test_videos_of_the_run_that_this_one_started_from_count_too(kept, tmp_path):
    records = load_videos(kept.experiment()).records
    experiment = changed(kept.experiment(), model={"init_from": str(kept.path)})
    second, third = RunDirectory(tmp_path / "second"), RunDirectory(tmp_path / "third")
    second.create(experiment, [])
    third.create(changed(experiment, model={"init_from": str(second.checkpoints.folder / "best.keras")}), [])

    for run in (second, third):
        everything = [replace(record, split="test") for record in records]
        trained = sum(record.split == "train" for record in records)
        assert seen_in_pretraining(run.path, everything) == {"test_videos": trained, "of": len(records)}


def test_edited_keys_that_change_the_course_are_named(kept):
    experiment = kept.experiment()
    records = load_videos(experiment).records

    require_same_course(kept.path, changed(experiment, train={"knn_every": 3, "jit": "off", "epochs": 3}), records)
    edited = changed(experiment, train={"batch_size": 4, "epochs": 9}, views={"flip": 0.0})
    with pytest.raises(ConfigError) as error:
        require_same_course(kept.path, edited.model_copy(update={"seed": 3}), records)

    for line in ("seed: 0 -> 3", "train.batch_size: 2 -> 4", "train.epochs: 4 -> 9", "views.flip: 0.5 -> 0.0"):
        assert line in str(error.value)
    assert "knn_every" not in str(error.value) and "--init-from" in str(error.value)


def test_changed_training_videos_are_named(kept, folder):
    experiment = kept.experiment()
    train = [record.video_id for record in load_videos(experiment).records if record.split == "train"]
    (folder / train[0]).unlink()
    (folder / train[1]).write_bytes((folder / train[1]).read_bytes() + b"more")

    with pytest.raises(RunError) as error:
        require_same_course(kept.path, experiment, own_videos(kept.path, experiment).records)

    assert f"1 removed ({train[0]}); 1 of another size ({train[1]})" in str(error.value)


def test_a_removed_test_video_and_a_moved_set_do_not_stop_a_resume(kept, folder, tmp_path):
    test = next(record.video_id for record in load_videos(kept.experiment()).records if record.split == "test")
    (folder / test).unlink()
    shutil.move(folder, tmp_path / "moved")
    kept.config_file.write_text(kept.config_file.read_text().replace(str(folder), str(tmp_path / "moved")))

    require_same_course(kept.path, kept.experiment(), own_videos(kept.path, kept.experiment()).records)


def test_a_damaged_table_is_named(kept):
    (kept.path / "videos.csv").write_text("id\n1\n")

    with pytest.raises(RunError, match=r"videos\.csv is damaged"):
        read_videos_of(kept.path)


def test_a_run_that_another_process_trains_is_refused_and_stays_readable(kept):
    code = (
        "import sys, time; from hdc_keras.runs.directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).sole_training(): print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, kept.path], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        for attempt in (kept.require_idle, kept.sole_training().__enter__):
            with pytest.raises(RunError, match=f"is being trained by process {holder.pid} on"):
                attempt()
        assert load_splits(kept.experiment(), "own", run=kept)[0]
    finally:
        holder.kill()
        holder.wait()
    kept.require_idle()
    with kept.sole_training():
        pass


def test_the_lock_does_not_make_a_new_folder_look_used(tmp_path, folder):
    run = RunDirectory(tmp_path / "new")

    with run.sole_training():
        run.create(experiment_on(folder))

    assert run.experiment().name == "test"


def test_the_command_refuses_a_run_that_another_process_trains_without_starting_a_backend(kept):
    python = [sys.executable, "-X", "importtime", "-m", "hdc_keras_cli.main"]
    code = (
        "import sys, time; from hdc_keras.runs.directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).sole_training(): print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, kept.path], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        done = subprocess.run(
            [*python, "pretrain", "--run", kept.path, "--resume"], capture_output=True, text=True, check=False
        )
    finally:
        holder.kill()
        holder.wait()

    assert done.returncode == 1
    assert "is being trained by process" in " ".join((done.stdout + done.stderr).split())
    assert not any(line.split("|")[-1].strip() in ("keras", "tensorflow") for line in done.stderr.splitlines())
