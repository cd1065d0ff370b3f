"""What can be refused without a backend is refused before one is imported, which takes seconds."""

import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.end_to_end

# Runs a command in this process, and prints whether it imported Keras.
PROBE = """
import sys
from hdc_keras_cli.main import main
sys.argv[0] = "hdc-keras"
try:
    main()
finally:
    print("keras was imported" if "keras" in sys.modules else "no backend")
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "pretrain --data nowhere",
        "pretrain --data VIDEOS --run RUN",
        "pretrain --data VIDEOS --run RUN/config.yaml",
        "pretrain --config videos-cpu --data VIDEOS --set train.batch_size=500",
        "pretrain --config nowhere.yaml",
        "pretrain --data VIDEOS --init-from nowhere",
        "pretrain --run nowhere --resume --dry-run",
        "evaluate --run nowhere --protocol knn",
        "evaluate --run RUN --protocol nope",
        "evaluate --run RUN --protocol knn --data nowhere",
        "evaluate --run RUN --protocol knn --data VIDEOS/across",
        "evaluate --run RUN --protocol knn --checkpoint best",
        "evaluate --run RUN --protocol knn --out RUN/config.yaml",
        "evaluate --run RUN --protocol knn --set model.backbone=r3d18",
        "evaluate --run RUN --protocol finetune-vcop --part 1/2",
        "evaluate --run RUN --protocol knn --supervised nowhere.pth",
        "embed --run RUN --data VIDEOS --out RUN/config.yaml",
        "embed --run RUN --data nowhere --out x.parquet",
        "embed --run RUN --data VIDEOS --out x.parquet --checkpoint best",
        "export --run RUN --format nope",
        "export --run RUN --out RUN/config.yaml",
        "export --run RUN --checkpoint best",
        "export --model nowhere",
        "export --model RUN",
        "finetune --run nowhere --data VIDEOS",
        "finetune --run RUN --data nowhere",
        "finetune --run RUN --data VIDEOS/across",
        "finetune --run RUN --data VIDEOS --method nope",
        "finetune --run RUN --data VIDEOS --label nope",
        "finetune --run RUN --data VIDEOS --checkpoint best",
        "finetune --run RUN --data VIDEOS --out RUN",
        "finetune --run none --data VIDEOS --config videos-cpu",
        "predict --model nowhere --data VIDEOS --out x.csv",
        "predict --model RUN --data VIDEOS --out x.csv",
        "predict --model RUN --data VIDEOS --out x.txt",
        "predict --model RUN --data VIDEOS --out x.csv --sliding 2",
        "push VIDEOS anna/x",
        "push RUN x",
        "pull anna/x --out RUN",
        "report --run nowhere",
        "report --run RUN --out RUN/config.yaml/report.html",
        "compare RUN nowhere",
        "prepare --data nowhere --out out",
        "prepare --data VIDEOS --out VIDEOS",
        "doctor --data nowhere",
    ],
)
def test_no_backend_is_imported_to_refuse(arguments, untrained_run, class_folder_once, tmp_path):
    words = [
        word.replace("RUN", str(untrained_run)).replace("VIDEOS", str(class_folder_once)) for word in arguments.split()
    ]
    assert_refused_without_a_backend(words, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", ["pretrain", "pretrain --config moving-shapes", "pretrain --preset coupled"])
def test_no_backend_is_imported_to_refuse_the_default_folder(arguments, untrained_run, tmp_path):
    for name in ("moving-shapes", "moving-shapes-coupled"):
        shutil.copytree(untrained_run, tmp_path / "runs" / name)

    assert "already holds a run" in assert_refused_without_a_backend(arguments.split(), tmp_path)


def assert_refused_without_a_backend(words, folder):
    """Run a command in a folder. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], cwd=folder, capture_output=True, text=True, timeout=120
    )
    printed = done.stdout + done.stderr
    assert done.returncode in (1, 2) and "Error: " in printed and "Traceback" not in printed, printed
    assert "no backend" in printed, printed
    return printed


def test_every_export_format_is_known_without_a_backend():
    from hdc_keras_cli.export import FORMAT_FILES

    from hdc_keras.export import FORMATS

    assert {name: format.file_name for name, format in FORMATS.items()} == FORMAT_FILES
