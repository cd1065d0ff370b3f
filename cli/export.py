"""`hdc-keras export`."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Option(help="Run directory of a pretraining run.")],
    format: Annotated[str, typer.Option(help="saved_model or keras.")] = "saved_model",
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder to create. [default: RUN/export/FORMAT]", show_default=False),
    ] = None,
) -> None:
    """Write a pretrained network for use elsewhere.

    saved_model: takes uint8 video (batch, time, height, width, 3) of any size in plain TensorFlow, without hdc_keras.
    keras: the backbone, for keras.models.load_model.

    Examples:
      hdc-keras export --run runs/moving-shapes --format saved_model
      hdc-keras export --run runs/mine --format keras --out backbone.keras
    """
    from hdc_keras_cli.console import console, start_backend

    from hdc_keras.training.run_directory import RunDirectory

    directory = RunDirectory(run)
    experiment = directory.experiment()

    start_backend()
    from hdc_keras.export import export as write

    model, checkpoint = directory.load_checkpoint()
    default = directory.path / "export" / {"saved_model": "saved_model", "keras": "backbone.keras"}.get(format, format)
    path = write(model, experiment, format, out or default)
    console.print(f"Wrote [bold]{path}[/] from {checkpoint.name}")
