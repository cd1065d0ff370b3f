"""`hdc-keras export`."""

from pathlib import Path
from typing import Annotated

import typer

# Every format with its file in the `export/` folder of a run, as in `hdc_keras.export.FORMATS`, which needs a backend.
FORMAT_FILES = {
    "saved_model": "saved_model",
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "keras": "backbone.keras",
}


def export(
    run: Annotated[Path, typer.Option(help="Run directory of a pretraining run.")],
    format: Annotated[str, typer.Option(help="saved_model, onnx, litert or keras.")] = "saved_model",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File or folder to create.",
            show_default="in RUN/export: saved_model, model.onnx, model.tflite or backbone.keras",
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
    """Export a pretrained network for use elsewhere, with a model card.

    saved_model, onnx and litert accept uint8 video (batch, time, height, width, 3) of any size and resize it inside
    the model. They run in plain TensorFlow, ONNX Runtime and LiteRT, without hdc_keras. keras is the backbone alone,
    for keras.models.load_model.

    Every export is loaded back in its runtime and compared with the Keras model. It is kept only if the outputs agree
    to 1e-4. onnx and litert need an extra: pip install 'hdc-keras[onnx]' or 'hdc-keras[litert]'.

    Examples:
      hdc-keras export --run runs/moving-shapes --format saved_model
      hdc-keras export --run runs/mine --format onnx --checkpoint best \\
        --licence CC-BY-4.0
      hdc-keras export --run runs/mine --format keras --out backbone.keras
    """
    from hdc_keras.errors import ConfigError, RunError
    from hdc_keras.files import require_creatable
    from hdc_keras.results.store import read_results
    from hdc_keras.runs.checkpoints import is_best, require_weights
    from hdc_keras.runs.directory import RunDirectory

    from .console import console, notices_hidden, print_parts, start_backend

    directory = RunDirectory(run)
    experiment = directory.experiment()
    results = [result.values for result in read_results(run)]

    if format not in FORMAT_FILES:
        raise ConfigError(f"--format {format}: expected one of {', '.join(FORMAT_FILES)}.")
    path = out or directory.path / "export" / FORMAT_FILES[format]
    if path.exists():
        raise RunError(f"{path} exists and is not overwritten. Remove it, or choose another place with --out.")
    try:
        require_creatable(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}). Choose another with --out.") from error
    directory.checkpoints.require(is_best(checkpoint))
    require_weights(weights, experiment)
    start_backend()
    from hdc_keras.export import export as write
    from hdc_keras.pretrained import load_checkpoint

    model, file = load_checkpoint(directory, checkpoint, weights)
    with console.status(f"writing {format} and comparing it with the Keras model"), notices_hidden():
        written = write(model, experiment, format, path, checkpoint=file, results=results, licence=licence)
    print_parts(
        "Wrote ",
        (str(written.path), "bold"),
        f" from {file.name}: {written.format}, {written.size:,} bytes, greatest difference from the Keras model "
        f"{written.difference:.2g}",
        soft_wrap=True,
    )
    print_parts("Model card: ", (str(written.card), "bold"), soft_wrap=True)
