"""README's own code runs, as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def python_block(heading):
    section = README.read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)


def test_the_ten_lines_of_python_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", python_block("From Python")], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "backbone.keras").exists()


def test_the_scripts_for_exported_models_run_without_hdc_keras(tmp_path):
    from hdc_keras import HDC, Experiment, R3DTiny
    from hdc_keras.export import FORMATS, export

    experiment = Experiment.model_validate({"data": {"frames": 8, "decode_size": [40, 40]}, "views": {"size": 32}})
    model, folder = HDC(R3DTiny(), experiment.views), tmp_path / "runs" / "moving-shapes" / "export"
    for name, format in FORMATS.items():
        export(model, experiment, name, folder / format.file_name)
    section = README.read_text(encoding="utf-8").split("## Exported models, without hdc_keras\n")[1].split("\n## ")[0]
    scripts = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(scripts) == len(FORMATS)

    without = "import sys\nsys.modules['hdc_keras'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", without + "\n".join(scripts)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("'P5'") == 4 and done.stdout.count("'embedding'") == 3


def test_fit_takes_a_tf_data_dataset_of_video_files(shapes_folder):
    import keras

    from hdc_keras import HDC, R3DTiny
    from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
    from hdc_keras.data.pipeline import windows_dataset
    from hdc_keras.data.records import read_records
    from hdc_keras.data.sampling import WindowSpec

    records = read_records(shapes_folder)
    store, failures = FrameStore((40, 40), 1.0), DecodeFailures(len(records), 0.1)
    dataset = windows_dataset(WindowLoader(records, WindowSpec(8, 2), store, failures, batch_size=12, seed=0))
    model = HDC(R3DTiny(), views={"size": 32})
    model.compile(keras.optimizers.AdamW(1e-3))

    history = model.fit(dataset, steps_per_epoch=3, verbose=0).history

    assert 0 < history["loss"][0] < 100
