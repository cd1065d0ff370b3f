"""The commands from pretraining to export, on a small run."""

import csv
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run_command

pytestmark = pytest.mark.end_to_end

INSTALLED = Path(sys.executable).parent / "hdc-keras"


def test_pretraining_prints_its_setup_its_progress_and_the_run_directory(smoke_run):
    run, printed = smoke_run

    for expected in (
        "moving shapes",
        "16 for training, 16 held out",
        "loss",
        "clips/s",
        "P5 temporal",
        "knn train motion",
    ):
        assert expected in printed
    assert f"The run is in runs/{run.name}" in printed and f"evaluate --run runs/{run.name}" in printed
    assert "Traceback" not in printed and "absl::" not in printed and "UserWarning" not in printed


@pytest.fixture(scope="session")
def evaluated(once, smoke_run):
    """The smoke run after an evaluation with four protocols, read-only, and what the command printed."""

    def make(folder):
        shutil.copytree(smoke_run[0], folder / "run")
        protocols = [part for name in ("linear", "knn", "retrieval", "factors") for part in ("--protocol", name)]
        done = run_command(folder, "evaluate", "--run", "run", *protocols)
        assert done.code == 0, done.out
        (folder / "printed.txt").write_text(done.out)

    folder = once("evaluated", make)
    return folder / "run", (folder / "printed.txt").read_text()


def read_result(run, protocol):
    (file,) = (run / "results").glob(f"{protocol}-moving-shapes-*.videos.csv")
    with file.open(newline="") as rows:
        return json.loads(Path(str(file).replace(".videos.csv", ".json")).read_text()), list(csv.DictReader(rows))


@pytest.mark.parametrize("protocol", ["linear", "knn", "retrieval"])
def test_metrics_agree_with_the_listed_predictions(evaluated, protocol):
    run, printed = evaluated
    result, videos = read_result(run, protocol)

    assert printed.count("32 of 32 videos evaluated, 0 failed") == 4 and "random weights" in printed
    assert result["counts"] == {"asked": 32, "decoded": 32, "failed": {}} and result["architecture"] == "r3d_tiny"
    for network in ("metrics", "random_weights"):
        for column in ("appearance", "motion"):
            rows = [row for row in videos if (row["network"], row["column"]) == (network, column)]
            assert len({row["video_id"] for row in rows}) == len(rows) == 16
            figures = result[network][column]["features"]
            right = sum(row["predicted"] == row["label"] for row in rows)
            assert figures["R@1" if protocol == "retrieval" else "top1"] == right / 16
            assert f"{right / 16:.3f}" in printed
            if network == "metrics":
                mean = f"{figures['mean_class_accuracy']:.3f}"
                assert f"mean class accuracy, {column} from features: {mean} (" in printed
            if protocol == "retrieval":
                # A video's name is appearance-motion-number.
                place = ("appearance", "motion").index(column)
                near = [[name.split("-")[place] for name in row["neighbours"].split("|")] for row in rows]
                for k in (1, 5, 10):
                    found = sum(row["label"] in labels[:k] for row, labels in zip(rows, near, strict=True))
                    assert figures[f"R@{k}"] == found / 16
                assert set(figures) == {"R@1", "R@5", "R@10", "R@20", "R@50", "mean_class_accuracy"}


@pytest.mark.parametrize("protocol", ["linear", "knn", "retrieval"])
def test_the_pretrained_network_and_random_weights_give_different_results(evaluated, protocol):
    result, videos = read_result(evaluated[0], protocol)

    levels = ("features", "P2", "P5", "spatial embeddings", "temporal embeddings")
    assert set(levels) <= set(result["metrics"]["motion"]) == set(result["random_weights"]["motion"])
    assert any(result["metrics"]["motion"][name] != result["random_weights"]["motion"][name] for name in levels)
    predicted = {
        network: [(row["predicted"], row["neighbours"]) for row in videos if row["network"] == network]
        for network in ("metrics", "random_weights")
    }
    assert predicted["metrics"] != predicted["random_weights"]


def test_a_metric_that_one_label_column_lacks_is_printed_for_the_other(evaluated):
    # The training videos have 5 classes of appearance, for which there is no top-5, and 6 of motion.
    run, printed = evaluated
    result, _ = read_result(run, "linear")

    assert "top5" not in result["metrics"]["appearance"]["features"]
    rows = []
    for name, network in (("features", "metrics"), ("random", "random_weights")):
        metrics = result[network]["motion"]["features"]
        rows.append(f"{name} {metrics['top1']:.3f} {metrics['top5']:.3f}")
    assert f"motion {' '.join(rows)}" in " ".join(printed.split())


def test_factors_prints_and_draws_what_each_level_and_task_encodes(evaluated):
    run, printed = evaluated

    assert "P5 temporal embedding" in printed and "all embeddings" in printed
    (chart,) = (run / "results").glob("factors-moving-shapes-*.png")
    assert chart.read_bytes().startswith(b"\x89PNG")


PLAIN_TENSORFLOW = """
import sys
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
for number, video in enumerate(np.load(sys.argv[2]).values()):
    outputs = model.serve(video)
    np.savez(f"out-{number}.npz", **{name: value.numpy() for name, value in outputs.items()})
assert not any(name.startswith("hdc_keras") for name in sys.modules)
"""


def test_the_exported_saved_model_agrees_with_the_model_in_a_process_without_hdc_keras(
    smoke_run, hdc_keras_in_process, tmp_path
):
    from keras import ops

    from hdc_keras.features.encoder import ClipEncoder
    from hdc_keras.runs.directory import RunDirectory

    run, _ = smoke_run
    done = hdc_keras_in_process("export", "--run", run, "--format", "saved_model", "--out", "exported")
    assert done.code == 0, done.out
    shapes = [(2, 8, 11, 11, 3), (1, 5, 60, 90, 3)]
    videos = [np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8) for shape in shapes]
    np.savez(tmp_path / "videos.npz", *videos)
    subprocess.run(
        [sys.executable, "-c", PLAIN_TENSORFLOW, "exported", "videos.npz"], cwd=tmp_path, check=True, timeout=120
    )

    directory = RunDirectory(run)
    encoder = ClipEncoder(directory.checkpoints.load()[0], directory.experiment().data.decode_size)
    for number, video in enumerate(videos):
        expected = encoder(video)
        exported = np.load(tmp_path / f"out-{number}.npz")
        assert set(exported) == set(expected) and {"P2", "P5", "P5_temporal", "embedding"} <= set(exported)
        for name in exported:
            np.testing.assert_allclose(exported[name], ops.convert_to_numpy(expected[name]), atol=1e-4, err_msg=name)


def assert_printed_export(printed, tmp_path, file, format):
    """Check the two printed lines (export with size, card), and the size, licence and weights on the card."""
    size = f"{file.stat().st_size:,} bytes"
    assert f"from best.keras: {format}, {size}, greatest difference from the Keras model" in printed
    assert len(printed.splitlines()) == 2, printed
    card = (tmp_path / f"{file.name}.md").read_text()
    assert size in card and "CC0-1.0" in card and "best.keras" in card


def test_the_exported_backbone_loads_in_keras(smoke_run, hdc_keras_in_process, tmp_path):
    import keras

    file = tmp_path / "backbone.keras"
    options = ["--format", "keras", "--checkpoint", "best", "--licence", "CC0-1.0", "--out", file]
    done = hdc_keras_in_process("export", "--run", smoke_run[0], *options)

    assert done.code == 0, done.out
    assert_printed_export(done.out, tmp_path, file, "keras")
    assert keras.models.load_model(file).name == "r3d_tiny"


@pytest.mark.slow
def test_an_onnx_export_prints_no_notices_of_its_converter(smoke_run, hdc_keras_command, tmp_path):
    file = tmp_path / "model.onnx"
    options = ["--format", "onnx", "--checkpoint", "best", "--licence", "CC0-1.0", "--out", file]
    done = hdc_keras_command("export", "--run", smoke_run[0], *options)

    assert done.code == 0, done.out
    assert_printed_export(done.out, tmp_path, file, "onnx")


@pytest.mark.slow
def test_videos_with_groups_are_pretrained_on_and_evaluated(
    class_folder, hdc_keras_command, hdc_keras_in_process, tmp_path
):
    with (class_folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        for label in ("across", "around"):
            writer.writerows([f"{label}/{i}.mp4", label, f"{label}{i // 2}"] for i in range(4))

    small = ["--smoke", "--set", "train.batch_size=2", "--set", "data.holdout=0.5"]
    done = hdc_keras_command("pretrain", "--data", class_folder, "--run", "run", "--config", "videos-cpu", *small)
    assert done.code == 0, done.out
    assert "4 for training, 4 held out for testing, in 4 groups that are not split" in done.out
    done = hdc_keras_in_process("evaluate", "--run", "run", "--protocol", "knn")
    assert done.code == 0, done.out
    assert "8 of 8 videos evaluated" in done.out


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_from_which_the_run_continues(hdc_keras_command, tmp_path):
    always = ["pretrain", "--smoke", "--run", "run", "--resume"]  # the same line starts and continues the run
    process = subprocess.Popen(
        [INSTALLED, *always],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/2"):
            break
    os.kill(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[0]

    assert process.returncode == 130, printed
    assert "a checkpoint is saved" in " ".join(printed.split()) and list((tmp_path / "run/checkpoints").glob("step-*"))
    done = hdc_keras_command(*always)
    assert done.code == 0 and "Done: 8 steps" in done.out, done.out


def test_resuming_a_finished_run_succeeds_and_does_nothing(hdc_keras_in_process, smoke_run):
    run, _ = smoke_run
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}

    done = hdc_keras_in_process("pretrain", "--smoke", "--run", run, "--resume")

    assert done.code == 0 and "is finished after" in " ".join(done.out.split())
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar_with_eta_and_a_table_of_levels(tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [INSTALLED, "pretrain", "--smoke", "--set", "train.knn_every=0"],
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


@pytest.mark.slow
def test_a_dry_run_prints_its_cost_and_writes_nothing(hdc_keras_command, shapes_folder, tmp_path):
    done = hdc_keras_command("pretrain", "--smoke", "--dry-run", "--set", "train.micro_batches=2")

    assert done.code == 0, done.out
    for expected in (
        "(4, 2, 8, 40, 40, 3) uint8",
        "(12, 8, 32, 32, 3)",
        "510,084 in r3d_tiny",
        "clips/s",
        "8 steps",
        "GiB",
    ):
        assert expected in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(smoke_run, hdc_keras_command, tmp_path):
    from keras import ops

    from hdc_keras.runs.directory import RunDirectory

    # The learning rate is too small to move a weight visibly. The coupled task has different heads.
    options = ["--smoke", "--preset", "coupled", "--set", "train.learning_rate=1e-9"]
    done = hdc_keras_command("pretrain", *options, "--run", "run", "--init-from", smoke_run[0])

    assert done.code == 0, done.out
    first, second = (RunDirectory(run).checkpoints.load()[0] for run in (smoke_run[0], tmp_path / "run"))
    for before, after in zip(first.backbone.trainable_weights, second.backbone.trainable_weights, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(after), ops.convert_to_numpy(before), atol=1e-6, err_msg=before.path
        )
