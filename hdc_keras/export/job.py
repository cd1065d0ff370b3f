"""The export job: write a model, load it back in its own runtime, compare it with Keras, and only then keep it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.errors import ConfigError, ExportError, RunError
from hdc_keras.export.card import Origin, Trial, describe, render
from hdc_keras.export.format import Format, Outputs
from hdc_keras.export.networks import Model, Network, classes_of, in_float32, network_of
from hdc_keras.export.registry import FORMATS
from hdc_keras.files import digest, remove_leftovers, replacing, write_text

# Our choice: about a hundred times the rounding error of single precision, and far below the effect of a wrong
# operation.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: the exported file or folder.
        card: its model card, in Markdown.
        format: its format.
        size: size of the model in bytes, without the card.
        difference: largest difference from the Keras model, as measured by `greatest_difference`.
    """

    path: Path
    card: Path
    format: str
    size: int
    difference: float


def export(
    model: Model,
    experiment: Experiment,
    format: str,
    path: str | Path,
    *,
    checkpoint: Path | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    licence: str | None = None,
    classifier: Mapping[str, Any] | None = None,
) -> Exported:
    """Write `model` in one of `FORMATS`, with a model card. Nothing is overwritten; a failure leaves nothing behind.
    What a killed export to the same path left is replaced: unfinished files, and a card without its model.

    - `saved_model`, `onnx`, `litert`: take uint8 video (batch, time, height, width, 3) of any size, resize and
      normalise it, and return what `ClipEncoder` returns, or `scores` of each class if the model is a classifier. They
      compute in float32, whatever precision the model was trained in.
    - `keras`: for `keras.models.load_model`: from (batch, time, height, width, 3) float in [0, 1] to the feature map of
      each level, or to `scores`. Its layers are those of the backbone.

    The class names of a classifier are inside: as output `labels` of a SavedModel, as metadata `labels` (JSON) of an
    ONNX model, and as `labels.json` in a zip archive, which a Keras file is and a LiteRT file ends with.

    The export is loaded in its own runtime and compared with the Keras model on two batches of different shapes. The
    model card and its facts as JSON are `MODEL_CARD.md` and `assets.extra/hdc_keras.json` inside a SavedModel, and
    `NAME.md` and `NAME.json` beside a file called NAME.

    Args:
        model: the pretrained model, or a classifier.
        experiment: how it was pretrained, including the preparation of frames.
        format: one of `FORMATS`.
        path: file or folder to create. A file must have the suffix of its format.
        checkpoint: the checkpoint file that the model was loaded from, for the card.
        results: evaluation results, as in a run's `results/*.json`, for the card.
        licence: licence of the weights, for the card.
        classifier: what is known about the classifier, as in its `classifier.json`, for the card.

    Raises:
        ConfigError: the format is unknown, a package or backend that it needs is missing, or the suffix is wrong.
        ExportError: the network cannot be converted to this format, its outputs are non-finite, or the outputs of the
            export differ from them by more than `TOLERANCE`.
        RunError: the path exists already or cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format `{format}`. Known: {', '.join(FORMATS)}.")
    chosen, path = FORMATS[format], Path(path)
    chosen.require(path)
    descriptions = _description_files(chosen, path)
    _require_free(path, *([] if _is_card_without_model(path, descriptions[1]) else descriptions))
    # A run that is still trained may delete the checkpoint meanwhile.
    loaded = digest(checkpoint) if checkpoint else None
    origin = Origin(checkpoint.name if checkpoint else None, loaded, results, licence, classifier)
    model = in_float32(model) if chosen.takes_video else model
    network = network_of(model, experiment)
    expected = _expected_outputs(chosen, network, experiment)
    remove_leftovers(path)
    try:
        # The model gets its final name last, so that it never exists without its card.
        with _removed_on_failure(() if chosen.is_folder else descriptions), replacing(path, path.suffix) as unfinished:
            chosen.write(network, experiment, unfinished)
            trial = _compare(chosen, unfinished, network, expected)
            size = sum(file.stat().st_size for file in (unfinished, *unfinished.rglob("*")) if file.is_file())
            facts = describe(model, network, experiment, chosen, path.name, size, trial, origin)
            card, facts_file = _description_files(chosen, unfinished) if chosen.is_folder else descriptions
            write_text(facts_file, json.dumps(facts, indent=2))
            write_text(card, render(facts))
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}). Choose another with --out.") from error
    except Exception as error:
        if "No space left on device" not in str(error):  # TensorFlow has errors of its own
            raise
        raise RunError(f"{path} cannot be written (No space left on device). Choose another with --out.") from error
    return Exported(path, descriptions[0], format, size, trial.difference)


def _description_files(format: Format, path: Path) -> tuple[Path, Path]:
    """The model card of an export, and its facts as JSON: inside a folder, or beside a file."""
    if format.is_folder:
        return path / "MODEL_CARD.md", path / "assets.extra" / "hdc_keras.json"
    return path.with_name(f"{path.name}.md"), path.with_name(f"{path.name}.json")


def _is_card_without_model(path: Path, facts_file: Path) -> bool:
    """Whether an export was killed after it had written the facts of its card, and before the model got its name."""
    try:
        facts = json.loads(facts_file.read_text())
    except (OSError, ValueError):
        return False
    return not path.exists() and isinstance(facts, dict) and facts.keys() >= {"weights_sha256", "check"}


def _require_free(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise RunError(f"{path} exists and is not overwritten. Remove it, or choose another place with --out.")


@contextmanager
def _removed_on_failure(files: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for file in files:
            with suppress(OSError):
                file.unlink()
        raise


def _expected_outputs(format: Format, network: Network, experiment: Experiment) -> list[tuple[np.ndarray, Outputs]]:
    """Batches to compare an export on, each with the outputs of the Keras model.

    Raises:
        ExportError: an output is non-finite.
    """
    reference = format.reference(network)
    with _without_tensor_float_32():
        expected = [(batch, reference(batch)) for batch in format.test_batches(network, experiment)]
    non_finite = {name for _, outputs in expected for name, value in outputs.items() if not np.isfinite(value).all()}
    if non_finite:
        names = ", ".join(sorted(non_finite))
        raise ExportError(f"the network's outputs contain non-finite values ({names}). Nothing was written.")
    return expected


def _compare(format: Format, path: Path, network: Network, expected: list[tuple[np.ndarray, Outputs]]) -> Trial:
    """Load an export in its own runtime and compare it with the Keras model.

    Raises:
        ExportError: they differ by more than `TOLERANCE`, or in the class names.
    """
    if (found := format.read_labels(path)) != classes_of(network):
        raise ExportError(
            f"the `{format.name}` export has other class names than the classifier: {found}. It is removed."
        )
    exported = format.open(path)
    trial = Trial(TOLERANCE)
    with _without_tensor_float_32():
        for batch, outputs in expected:
            difference = greatest_difference(outputs, exported(batch))
            if difference > TOLERANCE:
                raise ExportError(
                    f"the `{format.name}` export of the backbone `{network.backbone.name}` does not agree with the "
                    f"Keras model: for an input of shape {batch.shape} it differs by {difference:.2g} (allowed: "
                    f"{TOLERANCE:g}). Nothing was kept."
                )
            trial.add(batch, outputs, difference)
    return trial


def greatest_difference(expected: Outputs, found: Outputs) -> float:
    """The largest absolute difference over all outputs, relative to an output's largest value where that exceeds 1.

    Returns:
        Infinity if names or shapes differ, or if a value of `found` is non-finite.
    """
    if set(expected) != set(found) or any(found[name].shape != value.shape for name, value in expected.items()):
        return float("inf")
    differences = [
        np.abs(value - found[name]).max() / max(1.0, np.abs(value).max()) for name, value in expected.items()
    ]
    return float(np.nan_to_num(np.max(differences), nan=np.inf))


@contextmanager
def _without_tensor_float_32() -> Iterator[None]:
    """Turn off TensorFloat-32: on a GPU it rounds float32 factors to 10 bits, an error above the allowed difference."""
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
