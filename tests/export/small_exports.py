"""Exports of one small network in every format, made once per test session and read-only."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import keras
import numpy as np

from hdc_keras import HDC
from hdc_keras.backbones import build_backbone
from hdc_keras.config import Experiment
from hdc_keras.export import FORMATS, Exported, export


def small_experiment(backbone="r3d_tiny"):
    return Experiment(
        name="small",
        data={"frames": 8, "decode_size": (40, 48)},
        views={"size": 32},
        model={"backbone": backbone},
        contrast={"embedding_dim": 16, "hidden_dim": 24},
    )


def small_model(backbone="r3d_tiny", dtype="float32"):
    """An HDC whose batch norms have statistics as if it had been trained. It is the same in every process."""
    keras.utils.set_random_seed(0)
    experiment, rng = small_experiment(backbone), np.random.default_rng(0)
    model = HDC(build_backbone(backbone, dtype=dtype), experiment.views, experiment.contrast, dtype=dtype)
    for variable in model.variables:
        if "moving_mean" in variable.path:
            variable.assign(rng.normal(0, 0.1, variable.shape))
        if "moving_variance" in variable.path:
            variable.assign(rng.uniform(0.8, 1.2, variable.shape))
    return model


def small_export(once, format):
    """The export of `small_model()` in one format, in a folder that holds only it and `exported.json`."""
    folder = once(f"export-{format}", partial(_write, format))
    saved = json.loads((folder / "exported.json").read_text())
    return Exported(**saved | {"path": Path(saved["path"]), "card": Path(saved["card"])})


def _write(format, folder):
    exported = export(small_model(), small_experiment(), format, folder / FORMATS[format].file_name)
    (folder / "exported.json").write_text(json.dumps(asdict(exported), default=str))
