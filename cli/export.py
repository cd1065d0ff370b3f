"""`hdc-keras export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

# Every format with its file in the `export/` folder of a run, as in `hdc_keras.export.FORMATS`, which needs a backend.
FORMAT_FILES = {
    "saved_model": "saved_model",
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "keras": "backbone.keras",
}


def export(
    run: Annotated[Path | None, typer.Option(help="Run directory of a pretraining run.", show_default=False)] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Instead: the folder of a classifier that `hdc-keras finetune` made.", show_default=False),
    ] = None,
    format: Annotated[str, typer.Option(help="saved_model, onnx, litert or keras.")] = "saved_model",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File or folder to create.",
            show_default="in RUN/export or DIR/export: saved_model, model.onnx, model.tflite or backbone.keras",
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint to use: newest or best.")] = "newest",
    weights: Annotated[
        str, typer.Option(help="raw, ema (moving averages of train.ema), or auto: ema if the run keeps them.")
    ] = "auto",
    licence: Annotated[
        str | None,
        typer.Option(help="Licence to state in the model card. Whoever owns the weights chooses it."),
    ] = None,
) -> None:
    """Export a pretrained network or a classifier for use elsewhere, with a model card.

    saved_model, onnx and litert accept uint8 video (batch, time, height, width, 3) of any size and resize it inside
    the model. They run in plain TensorFlow, ONNX Runtime and LiteRT, without hdc_keras. keras is the backbone alone,
    or the classifier without the preparation of frames, for keras.models.load_model. The names of the classes are
    inside the files of a classifier.

    Every export is loaded back in its runtime and compared with the Keras model. It is kept only if the outputs agree
    to 1e-4. onnx and litert need an extra: pip install 'hdc-keras[onnx]' or 'hdc-keras[litert]'.

    Examples:
      hdc-keras export --run runs/moving-shapes --format saved_model
      hdc-keras export --run runs/mine --format onnx --checkpoint best \\
        --licence CC-BY-4.0
      hdc-keras export --run runs/mine --format keras --out backbone.keras
      hdc-keras export --model models/strokes --format onnx
    """
    from hdc_keras.classification.directory import ClassifierDirectory
    from hdc_keras.errors import ConfigError, RunError
    from hdc_keras.files import require_creatable
    from hdc_keras.results.store import read_results
    from hdc_keras.runs.checkpoints import is_best, require_weights
    from hdc_keras.runs.directory import RunDirectory

    from .console import console, notices_hidden, print_parts, start_backend

    if (run is None) == (model is None):
        raise ConfigError("export needs either --run RUN, for a pretrained network, or --model DIR, for a classifier.")
    if model is not None and (checkpoint, weights) != ("newest", "auto"):
        raise ConfigError("--checkpoint and --weights are about runs. Leave them out with --model.")
    classifier: ClassifierDirectory | None = None
    if model is not None:
        classifier = ClassifierDirectory(model)
        classifier.facts()
        folder, experiment = model, classifier.experiment()
    elif run is not None:
        directory = RunDirectory(run)
        folder, experiment = directory.path, directory.experiment()
        results = [result.values for result in read_results(directory.path)]

    if format not in FORMAT_FILES:
        raise ConfigError(f"--format {format}: expected one of {', '.join(FORMAT_FILES)}.")
    name = "classifier.keras" if classifier and format == "keras" else FORMAT_FILES[format]
    path = out or folder / "export" / name
    if path.exists():
        raise RunError(f"{path} exists and is not overwritten. Remove it, or choose another place with --out.")
    try:
        require_creatable(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}). Choose another with --out.") from error
    if classifier is None:
        directory.checkpoints.require(is_best(checkpoint))
        require_weights(weights, experiment)
    start_backend()
    from hdc_keras.export import export as write
    from hdc_keras.pretrained import load_checkpoint

    about: dict[str, Any]
    if classifier:
        network, file = classifier.load(), classifier.model_file
        about = {"classifier": classifier.facts()}
    else:
        network, file = load_checkpoint(directory, checkpoint, weights)
        about = {"results": results}
    with console.status(f"writing {format} and comparing it with the Keras model"), notices_hidden():
        written = write(network, experiment, format, path, checkpoint=file, licence=licence, **about)
    print_parts(
        "Wrote ",
        (str(written.path), "bold"),
        f" from {file.name}: {written.format}, {written.size:,} bytes, greatest difference from the Keras model "
        f"{written.difference:.2g}",
        soft_wrap=True,
    )
    print_parts("Model card: ", (str(written.card), "bold"), soft_wrap=True)
