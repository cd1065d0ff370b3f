import json
import re
import resource
import signal
import zipfile

import numpy as np
import pytest

from hdc_keras.errors import RunError, WeightsError
from hdc_keras.runs.model_files import read_model
from hdc_keras.training.initial_weights import copy_weights
from hdc_keras.training.models import build_model
from tests.training.small_runs import changed


def names(run):
    return [file.name for file in run.checkpoints.files()]


def test_the_newest_checkpoints_are_kept(run, model):
    for step in (3, 6, 12):
        run.checkpoints.save(model, step, keep=2)

    assert names(run) == ["step-000000006.keras", "step-000000012.keras"]
    assert run.checkpoints.load()[1] == run.checkpoints.files()[-1]


def test_the_best_checkpoint_is_kept_in_addition_and_any_knn_score_beats_any_loss(run, model):
    for step, (by, score) in enumerate(
        [("loss", -3.0), ("knn_train", 0.4), ("knn_train", 0.3), ("loss", 9.0), ("knn_train", 0.4)], 1
    ):
        run.checkpoints.keep_best(run.checkpoints.save(model, step, keep=2), by, score)

    assert names(run) == ["step-000000004.keras", "step-000000005.keras"]
    assert json.loads((run.path / "best.json").read_text()) == {
        "by": "knn_train",
        "score": 0.4,
        "checkpoint": "step-000000002",
    }
    assert run.checkpoints.load(best=True)[1] == run.checkpoints.best


def test_a_damaged_note_of_the_best_checkpoint_is_replaced(run, model):
    file = run.checkpoints.save(model, 1, keep=1)
    run.checkpoints.keep_best(file, "knn_train", 0.9)
    (run.path / "best.json").write_text('{"by": "kn')

    run.checkpoints.keep_best(file, "knn_train", 0.1)

    assert json.loads((run.path / "best.json").read_text())["score"] == 0.1


def test_a_loaded_checkpoint_equals_the_saved_model(run, model):
    model.compile("adam")
    run.checkpoints.save(model, 1, keep=1)

    loaded, _ = run.checkpoints.load(compiled=True)

    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert type(loaded.optimizer) is type(model.optimizer) and not run.checkpoints.load()[0].compiled


@pytest.mark.parametrize("best", [False, True])
def test_a_run_without_checkpoints_says_so(run, best):
    with pytest.raises(RunError, match="has no best checkpoint" if best else "holds no checkpoint"):
        run.checkpoints.load(best=best)


def cut_short(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file):
    file.write_bytes(b"")


def no_checkpoint(file):
    file.write_bytes(b"not a checkpoint")


def without_weights(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}")


def one_byte_changed(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def replaced_by_a_folder(file):
    file.unlink(missing_ok=True)
    file.mkdir()


DAMAGES = {
    cut_short: r"it is damaged, or not a `\.keras` file \(File is not a zip file\)",
    emptied: r"it is damaged, or not a `\.keras` file \(File is not a zip file\)",
    no_checkpoint: r"it is damaged, or not a `\.keras` file \(File is not a zip file\)",
    without_weights: r"it is damaged, or not a `\.keras` file \(model\.weights\.h5 is missing\)",
    one_byte_changed: r"it is damaged \(the content of model\.weights\.h5 has changed\)",
    replaced_by_a_folder: "it is a folder",
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.items())
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_loaded(run, model, damage, message):
    for step in (1, 2):
        run.checkpoints.save(model, step, keep=2)
    first, second = run.checkpoints.files()
    damage(second)
    expected = rf"{second} cannot be loaded: {message}.*It is skipped: step-000000001\.keras is used\."

    with pytest.warns(UserWarning, match=expected):
        assert run.checkpoints.load()[1] == first
    warnings = []
    run.checkpoints.load(warn=warnings.append)
    assert len(warnings) == 1 and re.fullmatch(expected, warnings[0])


@pytest.mark.parametrize(("damage", "message"), DAMAGES.items())
def test_a_damaged_file_is_not_said_to_be_missing(run, model, damage, message):
    file = run.checkpoints.save(model, 1, keep=1)
    damage(file)

    with pytest.raises(WeightsError, match=rf"step-000000001\.keras cannot be loaded: {message}"):
        read_model(file)
    with pytest.raises(RunError, match=rf"model\.init_from: {file} (cannot be loaded: {message}|is a folder without)"):
        copy_weights(model, str(file))


def test_a_file_that_does_not_exist_is_said_to_be_missing(model, tmp_path):
    with pytest.raises(WeightsError, match=r"none\.keras cannot be loaded: no such file"):
        read_model(tmp_path / "none.keras")
    with pytest.raises(RunError, match=r"model\.init_from: .*none\.keras cannot be loaded: no such file"):
        copy_weights(model, str(tmp_path / "none.keras"))


def test_damaged_checkpoints_are_all_named(run):
    for step in (1, 2):
        no_checkpoint(run.checkpoints.folder / f"step-{step:09d}.keras")

    with pytest.raises(RunError, match=r"step-000000002\.keras cannot be loaded.*\n.*step-000000001\.keras cannot be"):
        run.checkpoints.load()


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        (
            "contrast",
            {"embedding_dim": 16},
            "contrast: config has .*embedding_dim=8.* checkpoint has .*embedding_dim=16",
        ),
        ("views", {"size": 24}, "views: config has .*size=16.* checkpoint has .*size=24"),
        ("model", {"backbone": "mc3_tiny"}, "backbone: config has r3d_tiny; checkpoint has mc3_tiny"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(run, experiment, section, keys, message):
    run.checkpoints.save(build_model(changed(experiment, **{section: keys})), 1, keep=1)

    with pytest.raises(RunError, match=rf"a different model[\s\S]*{message}"):
        run.checkpoints.load()


def test_a_checkpoint_that_cannot_be_written_leaves_the_others_intact(run, model):
    run.checkpoints.save(model, 1, keep=1)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(RunError, match=r"step-000000002.keras cannot be written \(File too large\).*--resume"):
            run.checkpoints.save(model, 2, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, handler)

    assert [file.name for file in run.checkpoints.folder.iterdir()] == ["step-000000001.keras"]
    run.checkpoints.load()


def test_unfinished_files_of_killed_processes_are_removed(run, model):
    from hdc_keras.files import temporary_beside

    file = run.checkpoints.save(model, 1, keep=1)
    temporary_beside(file, ".keras").write_bytes(b"half a checkpoint")

    run.checkpoints.remove_unfinished()

    assert list(run.checkpoints.folder.iterdir()) == [file]
