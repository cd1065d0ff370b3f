"""Hand a pretrained network on: a SavedModel for any TensorFlow runtime, or a Keras backbone."""

import json
import shutil
import tempfile
from pathlib import Path

import keras

from hdc_keras.config import Experiment
from hdc_keras.encoder import ClipEncoder
from hdc_keras.errors import ConfigError, RunError
from hdc_keras.model import HDC

FORMATS = ("saved_model", "keras")


def export(model: HDC, experiment: Experiment, format: str, path: str | Path) -> Path:
    """Write `model` in one of `FORMATS`; nothing is overwritten, and nothing incomplete is left.

    - `saved_model`: a folder for `tf.saved_model.load`. Its `serve` takes uint8 video
      (batch, time, height, width, 3) of any size, resizes and normalises inside, and gives pooled features by level,
      embeddings by level and task, and the joined `embedding`, all float32.
    - `keras`: the backbone alone, (batch, time, height, width, 3) float in [0, 1] to its last feature map, for
      `keras.models.load_model` after `import hdc_keras.backbones`.

    Args:
        model: the pretrained model.
        experiment: says how frames are prepared.
        format: one of `FORMATS`.
        path: file or folder to create.

    Returns:
        `path`.

    Raises:
        ConfigError: unknown format, or one that the active backend does not have.
        RunError: something is at `path` already.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ConfigError(f"unknown format `{format}`. Known: {', '.join(FORMATS)}.")
    if path.exists():
        raise RunError(f"{path} exists and is left as it is. Remove it, or choose another place with --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".exporting-", dir=path.parent))
    try:
        made = work / path.name
        if format == "keras":
            made = made.with_suffix(".keras")
            model.backbone.save(made)
        else:
            _write_saved_model(model, experiment, made)
        made.replace(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path


def _write_saved_model(model: HDC, experiment: Experiment, folder: Path) -> None:
    if keras.backend.backend() != "tensorflow":
        raise ConfigError("a SavedModel needs the TensorFlow backend: run with KERAS_BACKEND=tensorflow.")
    import tensorflow as tf

    encoder = ClipEncoder(model, experiment.data.decode_size)
    archive = keras.export.ExportArchive()
    archive.track(encoder)
    archive.add_endpoint(
        "serve",
        encoder.call,
        input_signature=[tf.TensorSpec((None, None, None, None, 3), tf.uint8, name="video")],
    )
    archive.write_out(str(folder), verbose=False)
    card = {
        "input": "video: uint8 (batch, time, height, width, 3), RGB",
        "pretrained_on": {"frames": experiment.data.frames, "stride": experiment.data.stride},
        "resized_to": list(experiment.data.decode_size),
        "cropped_to": model.views.size,
        "backbone": model.backbone.name,
        "levels": list(model.contrast.used_levels),
        "tasks": list(model.tasks),
    }
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    (extra / "hdc_keras.json").write_text(json.dumps(card, indent=2), encoding="utf-8")
