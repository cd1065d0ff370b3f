"""The export job: write under a temporary name, read back, compare, describe, and only then give it its name."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.errors import ConfigError, ExportError, RunError
from hdc_keras.export.card import Facts, Origin, Trial, describe, render
from hdc_keras.export.format import Format, Outputs
from hdc_keras.export.keras_backbone import KERAS_BACKBONE
from hdc_keras.export.litert import LITERT
from hdc_keras.export.onnx import ONNX
from hdc_keras.export.portable import in_float32
from hdc_keras.export.saved_model import SAVED_MODEL
from hdc_keras.model import HDC

FORMATS: dict[str, Format] = {format.name: format for format in (SAVED_MODEL, ONNX, LITERT, KERAS_BACKBONE)}

# Our choice: about a hundred times what single precision leaves, and far below what a wrong operation makes.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """What an export left.

    Attributes:
        path: the file or folder.
        card: its model card, Markdown.
        format: its format.
        size: bytes of the model, without the card.
        difference: greatest difference from the Keras model, as `greatest_difference` measures it.
    """

    path: Path
    card: Path
    format: str
    size: int
    difference: float


def export(
    model: HDC,
    experiment: Experiment,
    format: str,
    path: str | Path,
    *,
    checkpoint: Path | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    licence: str | None = None,
) -> Exported:
    """Write `model` in one of `FORMATS`, with a model card; nothing is overwritten, and nothing incomplete is left.

    - `saved_model`, `onnx`, `litert`: take uint8 video (batch, time, height, width, 3) of any size, resize and
      normalise inside, and give what `ClipEncoder` gives. They compute in float32, whatever the model was trained in.
    - `keras`: the backbone alone, (batch, time, height, width, 3) float in [0, 1] to the feature map of each level, for
      `keras.models.load_model`; its layers are all Keras' own.

    What was written is loaded in its own runtime and compared with the Keras model on two batches of different shapes.
    The card and its facts as JSON are `MODEL_CARD.md` and `assets.extra/hdc_keras.json` in a SavedModel's folder, and
    `NAME.md` and `NAME.json` beside a file called NAME.

    Args:
        model: the pretrained model.
        experiment: says how frames are prepared.
        format: one of `FORMATS`.
        path: file or folder to create; a file has the suffix of its format.
        checkpoint: the file that the model is from, for the card.
        results: of evaluations, as in a run's `results/*.json`, for the card.
        licence: licence of the weights, for the card.

    Raises:
        ConfigError: unknown format, a package or backend that it needs is missing, or a wrong suffix.
        ExportError: the network cannot be written in this format, or the file does not do what the network does.
        RunError: something is at `path` already, or it cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format `{format}`. Known: {', '.join(FORMATS)}.")
    chosen, path = FORMATS[format], Path(path)
    chosen.require(path)
    files = _Files.of(path, chosen)
    files.require_free()
    model = in_float32(model) if chosen.takes_video else model
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".exporting-", dir=path.parent))
        try:
            made = files.within(work)
            chosen.write(model, experiment, made.model)
            trial = try_out(chosen, model, experiment, made.model)
            size = sum(file.stat().st_size for file in (made.model, *made.model.rglob("*")) if file.is_file())
            origin = Origin(checkpoint, results, licence)
            made.describe(describe(model, experiment, chosen, path.name, size, trial, origin))
            made.move_to(files)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}). Choose another with --out.") from error
    return Exported(path, files.card, format, size, trial.difference)


@dataclass(frozen=True)
class _Files:
    """A model, its card, and the card's facts for programs."""

    model: Path
    card: Path
    facts: Path

    @classmethod
    def of(cls, path: Path, format: Format) -> "_Files":
        if format.is_folder:
            return cls(path, path / "MODEL_CARD.md", path / "assets.extra" / "hdc_keras.json")
        return cls(path, path.with_name(f"{path.name}.md"), path.with_name(f"{path.name}.json"))

    def require_free(self) -> None:
        for file in (self.model, self.card, self.facts):
            if file.exists():
                raise RunError(f"{file} exists and is left as it is. Remove it, or choose another place with --out.")

    def within(self, folder: Path) -> "_Files":
        """The same names in another folder."""
        return _Files(*(folder / file.relative_to(self.model.parent) for file in (self.model, self.card, self.facts)))

    def describe(self, facts: Facts) -> None:
        self.facts.parent.mkdir(exist_ok=True)
        self.facts.write_text(json.dumps(facts, indent=2), encoding="utf-8")
        self.card.write_text(render(facts), encoding="utf-8")

    def move_to(self, final: "_Files") -> None:
        """The model last: where it is, its card is."""
        if not self.card.is_relative_to(self.model):
            self.card.replace(final.card)
            self.facts.replace(final.facts)
        self.model.replace(final.model)


def try_out(format: Format, model: HDC, experiment: Experiment, path: Path) -> Trial:
    """Load what was written in its own runtime, and compare it with the Keras model.

    Raises:
        ExportError: it does not agree to `TOLERANCE`, or the network gives numbers that are not finite.
    """
    found = format.open(path)
    expected = format.reference(model, experiment)
    trial = Trial(TOLERANCE)
    with _full_precision():
        for batch in format.probes(model, experiment):
            wanted = expected(batch)
            broken = [name for name, value in wanted.items() if not np.isfinite(value).all()]
            if broken:
                names = ", ".join(broken)
                raise ExportError(f"the network gives numbers that are not finite ({names}). Nothing was kept.")
            difference = greatest_difference(wanted, found(batch))
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"the `{format.name}` file of the backbone `{model.backbone.name}` does not do what the network "
                    f"does: for an input of {batch.shape} it differs by {difference:.2g}, where {TOLERANCE:g} is "
                    "allowed. Nothing was kept."
                )
            trial.add(batch, wanted, difference)
    return trial


def greatest_difference(wanted: Outputs, found: Outputs) -> float:
    """Greatest absolute difference of any number of any output; of outputs that reach beyond 1, as a share of their
    greatest number. Infinite where names or shapes differ, or where a number is none."""
    if set(wanted) != set(found) or any(found[name].shape != value.shape for name, value in wanted.items()):
        return float("inf")
    differences = [np.abs(value - found[name]).max() / max(1.0, np.abs(value).max()) for name, value in wanted.items()]
    return float(np.nan_to_num(np.max(differences), nan=np.inf))


@contextmanager
def _full_precision() -> Iterator[None]:
    """On a GPU, TensorFlow rounds the factors of float32 products to 10 bits, which is more than what is looked for."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
