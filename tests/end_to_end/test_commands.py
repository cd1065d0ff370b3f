"""The installed command, as a user runs it."""

import csv
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end


def test_pretraining_says_what_it_uses_what_it_learns_and_where_the_run_is(smoke_run):
    run, printed = smoke_run

    for expected in ("moving shapes", "16 for training, 16 held out", "loss", "clips/s", "P5 temporal", "knn motion"):
        assert expected in printed
    assert f"The run is in runs/{run.name}" in printed and f"evaluate --run runs/{run.name}" in printed
    assert "Traceback" not in printed and "absl::" not in printed and "UserWarning" not in printed


def test_all_protocols_judge_every_video_beside_random_weights(smoke_run, hdc_keras_command):
    run, _ = smoke_run

    done = hdc_keras_command(
        "evaluate", "--run", run, "--protocol", "linear", "--protocol", "knn", "--protocol", "retrieval"
    )

    assert done.code == 0, done.out
    assert "32 of 32 videos evaluated, 0 failed" in done.out and "random weights" in done.out
    for protocol in ("linear", "knn", "retrieval"):
        result = json.loads((run / "results" / f"{protocol}-moving-shapes.json").read_text())
        assert result["counts"] == {"asked": 32, "decoded": 32, "failed": {}} and result["architecture"] == "r3d_tiny"
        for source in ("features", "P2", "spatial embeddings", "temporal embeddings"):
            metrics = result["metrics"]["motion"][source], result["random_weights"]["appearance"][source]
            assert all(0 <= value <= 1 for metric in metrics for value in metric.values())
    assert set(result["metrics"]["motion"]["features"]) == {"R@1", "R@5", "R@10", "R@20", "R@50"}


def test_the_decoupling_meter_prints_and_draws_what_each_level_and_task_knows(smoke_run, hdc_keras_command):
    run, _ = smoke_run

    done = hdc_keras_command("evaluate", "--run", run, "--protocol", "factors")

    assert done.code == 0, done.out
    assert "P5 temporal embedding" in done.out and "all embeddings" in done.out
    assert (run / "results" / "factors-moving-shapes.png").read_bytes().startswith(b"\x89PNG")


PLAIN_TENSORFLOW = """
import json, sys
import numpy as np
import tensorflow as tf
assert not any(name.startswith("hdc_keras") for name in sys.modules)
model = tf.saved_model.load(sys.argv[1])
video = np.load(sys.argv[2])
outputs = model.serve(video)
np.savez(sys.argv[3], **{name: value.numpy() for name, value in outputs.items()})
assert not any(name.startswith("hdc_keras") for name in sys.modules)
"""


@pytest.mark.parametrize("shape", [(2, 8, 11, 11, 3), (1, 5, 60, 90, 3)])
def test_the_exported_saved_model_agrees_with_the_model_in_a_clean_process(
    smoke_run, hdc_keras_command, tmp_path, shape
):
    import numpy as np
    from keras import ops

    from hdc_keras.features.encoder import ClipEncoder
    from hdc_keras.runs.directory import RunDirectory

    run, _ = smoke_run
    done = hdc_keras_command("export", "--run", run, "--format", "saved_model", "--out", tmp_path / "exported")
    assert done.code == 0, done.out
    video = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    np.save(tmp_path / "video.npy", video)

    # An isolated interpreter, in which hdc_keras is not even on the path unless it is installed; it asserts that
    # nothing imports it.
    subprocess.run(
        [sys.executable, "-c", PLAIN_TENSORFLOW, tmp_path / "exported", tmp_path / "video.npy", tmp_path / "out.npz"],
        cwd=tmp_path,
        check=True,
        timeout=120,
    )

    directory = RunDirectory(run)
    encoder = ClipEncoder(directory.checkpoints.load()[0], directory.experiment().data.decode_size)
    expected = encoder(video)
    exported = np.load(tmp_path / "out.npz")
    assert set(exported) == set(expected) and {"P2", "P5", "P5_temporal", "embedding"} <= set(exported)
    for name in exported:
        np.testing.assert_allclose(exported[name], ops.convert_to_numpy(expected[name]), atol=1e-4, err_msg=name)


def test_the_exported_backbone_loads_in_keras(smoke_run, hdc_keras_command, tmp_path):
    import keras

    run, _ = smoke_run
    done = hdc_keras_command("export", "--run", run, "--format", "keras", "--out", tmp_path / "backbone.keras")

    assert done.code == 0, done.out
    assert keras.models.load_model(tmp_path / "backbone.keras").name == "r3d_tiny"


def test_an_export_prints_its_size_and_how_far_it_is_from_keras_and_leaves_a_card(
    smoke_run, hdc_keras_command, tmp_path
):
    run, _ = smoke_run
    file = tmp_path / "model.onnx"

    options = ["--format", "onnx", "--checkpoint", "best", "--licence", "CC0-1.0", "--out", file]
    done = hdc_keras_command("export", "--run", run, *options)

    assert done.code == 0, done.out
    size = f"{file.stat().st_size:,} bytes"
    assert f"from best.keras: onnx, {size}, greatest difference from the Keras model" in done.out
    assert len(done.out.splitlines()) == 2, done.out
    card = (tmp_path / "model.onnx.md").read_text()
    assert size in card and "CC0-1.0" in card and "best.keras" in card


def test_ones_own_videos_with_groups_go_the_whole_path(class_folder, hdc_keras_command, tmp_path):
    with (class_folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        for label in ("across", "around"):
            writer.writerows([f"{label}/{i}.mp4", label, f"{label}{i // 2}"] for i in range(4))

    small = ["--set", "train.batch_size=2", "--set", "data.holdout=0.5"]
    done = hdc_keras_command(
        "pretrain", "--data", class_folder, "--run", "own", "--smoke", "--config", "videos-cpu", *small
    )
    assert done.code == 0, done.out
    assert "4 for training, 4 held out for testing, in 4 groups that are kept apart" in done.out
    done = hdc_keras_command("evaluate", "--run", "own", "--protocol", "knn")
    assert done.code == 0, done.out
    assert "8 of 8 videos evaluated" in done.out


def test_ctrl_c_saves_a_checkpoint_from_which_the_run_continues(hdc_keras_command, tmp_path):
    command = [Path(sys.executable).parent / "hdc-keras", "pretrain", "--smoke", "--run", "run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/2"):
            break
    os.kill(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[0]

    assert process.returncode == 130, printed
    assert "a checkpoint is saved" in " ".join(printed.split()) and list((tmp_path / "run/checkpoints").glob("step-*"))
    done = hdc_keras_command("pretrain", "--run", "run", "--resume")
    assert done.code == 0 and "Done: 2 epochs" in done.out, done.out


def test_on_a_terminal_there_is_a_bar_with_eta_and_a_table_of_levels(tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [Path(sys.executable).parent / "hdc-keras", "pretrain", "--smoke", "--set", "train.knn_every=0"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "150", "LINES": "40", "TERM": "xterm"},
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    shown, until = b"", time.monotonic() + 240
    while time.monotonic() < until:
        if select.select([leader], [], [], 1)[0]:
            try:
                shown += os.read(leader, 65536)
            except OSError:
                break
        elif process.poll() is not None:
            break
    process.wait(timeout=30)

    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))
    assert process.returncode == 0, text[-2000:]
    for expected in ("ETA", "clips/s", "spatial loss", "temporal weight", "epoch 2/2"):
        assert expected in text


def test_a_run_directory_that_holds_a_run(refused, smoke_run):
    run, _ = smoke_run
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    refused("pretrain", "--run", run, code=1, says=["already holds a run", "--resume"])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_unknown_protocol_or_format(refused, smoke_run):
    run, _ = smoke_run
    refused("evaluate", "--run", run, "--protocol", "lineal", code=2, says=["`lineal`", "linear"])
    refused("export", "--run", run, "--format", "onyx", code=2, says=["`onyx`", "saved_model"])
    refused("export", "--run", run, "--checkpoint", "last", code=2, says=["`last`", "newest, best"])


def test_an_export_that_is_in_the_way_is_left_alone(refused, smoke_run, tmp_path):
    (tmp_path / "there").mkdir()
    refused("export", "--run", smoke_run[0], "--out", "there", code=1, says=["left as it is"])


def test_a_checkpoint_of_another_architecture(refused, smoke_run, tmp_path):
    import shutil

    shutil.copytree(smoke_run[0], tmp_path / "changed")
    config = tmp_path / "changed" / "config.yaml"
    config.write_text(config.read_text().replace("r3d_tiny", "r3d18"))
    says = ["another architecture", "config has r3d18; checkpoint has r3d_tiny"]
    refused("evaluate", "--run", "changed", "--protocol", "knn", code=1, says=says)


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(hdc_keras_command, shapes_folder, tmp_path):
    finished = hdc_keras_command("pretrain", "--smoke", "--dry-run", "--set", "train.micro_batches=2")

    assert finished.code == 0, finished.out
    for said in (
        "(4, 2, 8, 40, 40, 3) uint8",
        "(12, 8, 32, 32, 3)",
        "510,084 in r3d_tiny",
        "clips/s",
        "8 steps",
        "GiB",
    ):
        assert said in finished.out
    assert not list(tmp_path.iterdir())


def test_a_run_starts_from_the_weights_of_another(hdc_keras_command, shapes_folder):
    small = ["--smoke", "--set", "train.batch_size=2"]
    first = hdc_keras_command("pretrain", *small, "--run", "first")
    second = hdc_keras_command("pretrain", *small, "--run", "second", "--init-from", "first", "--preset", "coupled")
    refused = hdc_keras_command("pretrain", "--run", "first", "--resume", "--init-from", "second")

    assert (first.code, second.code) == (0, 0), second.out
    assert refused.code == 2 and "--resume" in refused.out
