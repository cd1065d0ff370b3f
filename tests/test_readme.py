"""The Python code in README.md and docs/ runs as printed."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

from hdc_keras.export import FORMATS
from hdc_keras.runs.directory import RunDirectory
from tests.export.small_exports import small_export
from tests.training.small_runs import experiment_on

ROOT = Path(__file__).parents[1]


def python_blocks():
    """All Python code blocks, with the page that each is on."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        (page.name, block)
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]


def the_block_with(pattern):
    """The only block in which a regular expression is found, and its match."""
    found = [(block, match) for _, block in python_blocks() if (match := re.search(pattern, block))]
    assert len(found) == 1, f"{len(found)} Python blocks in README.md and docs/ contain {pattern}"
    return found[0]


def run_script(script, folder):
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_block_is_valid_python_and_imports_names_that_exist():
    for page, block in python_blocks():
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "hdc_keras":
                missing = [name.name for name in node.names if not hasattr(import_module(node.module), name.name)]
                assert not missing, f"{page}: {node.module} has no {missing}"


@pytest.mark.slow
def test_the_example_from_python_trains_and_saves_a_backbone(tmp_path):
    script, _ = the_block_with(r'save\("backbone.keras"\)')

    run_script(script, tmp_path)

    assert (tmp_path / "backbone.keras").exists()


@pytest.mark.slow
def test_a_callback_of_a_tracker_receives_every_epoch_of_a_run(tmp_path, class_folder):
    script, _ = the_block_with(r"callbacks=\[follow\]")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(experiment_on(class_folder).model_dump(mode="json")))

    printed = run_script(script.replace("path/to/videos", str(class_folder)), tmp_path)

    logged = [line.split() for line in printed.splitlines() if line]
    rows = RunDirectory(tmp_path / "runs" / "mine").read_metrics()
    assert [epoch for epoch, *_ in logged] == ["0", "1", "2", "3"]
    assert [float(loss) for _, loss, _ in logged] == pytest.approx([float(row["loss"]) for row in rows], rel=1e-4)


@pytest.mark.slow
def test_the_scripts_for_exported_models_run_without_hdc_keras(tmp_path, once):
    scripts = []
    for name, format in FORMATS.items():
        script, path = the_block_with(rf'(?<!save\()"([^"]*{re.escape(format.file_name)})"')
        scripts.append(script)
        file = tmp_path / path[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(small_export(once, name).path)

    printed = run_script("import sys\nsys.modules['hdc_keras'] = None\n" + "\n".join(scripts), tmp_path)

    assert printed.count("'P5'") == len(FORMATS)
    assert printed.count("'embedding'") == sum(format.takes_video for format in FORMATS.values())


def test_fit_takes_a_tf_data_dataset_of_video_files(shapes_folder):
    import keras

    from hdc_keras import HDC, R3D
    from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
    from hdc_keras.data.pipeline import windows_dataset
    from hdc_keras.data.records import read_records
    from hdc_keras.data.sampling import WindowSpec

    records = read_records(shapes_folder)
    store, failures = FrameStore((20, 20), 1.0), DecodeFailures(len(records), 0.1)
    dataset = windows_dataset(WindowLoader(records, WindowSpec(4, 2), store, failures, batch_size=12, seed=0))
    model = HDC(R3D([8, 8, 12, 16], [1, 1, 1, 1], name="small"), views={"size": 16}, contrast={"embedding_dim": 8})
    model.compile(keras.optimizers.AdamW(1e-3))
    before = model.backbone.get_weights()

    history = model.fit(dataset, steps_per_epoch=3, verbose=0).history

    assert np.isfinite(history["loss"]).all() and model.steps_taken == 3 and not failures.reasons
    assert not any(np.array_equal(*pair) for pair in zip(before, model.backbone.get_weights(), strict=True))
