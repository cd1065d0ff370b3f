"""`--init-from`: start a new run from the weights of another run or file."""

from pathlib import Path

from hdc_keras.errors import RunError, WeightsError
from hdc_keras.model import HDC
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.model_files import read_model


def copy_weights(model: HDC, source: str) -> None:
    """Copy the weights of a run, or of a `.keras` file that holds an `HDC` or a backbone, into a new model.

    Both must have the same backbone. A projection head is copied if the source has one of the same name and shape.

    Args:
        model: the new model. Only the weights of its backbone and heads change.
        source: path of a run directory, whose newest checkpoint is used (its moving averages, if it
            keeps them), or of a `.keras` file.

    Raises:
        RunError: the weights cannot be read, or belong to a different backbone.
    """
    path = Path(source)
    if path.is_dir():
        run = RunDirectory(path)
        if not run.config_file.exists():
            raise RunError(
                f"model.init_from: {path} is a folder without {run.config_file.name}. Expected a run directory or a "
                "`.keras` file."
            )
        found, path = run.checkpoints.load(weights="auto")
    else:
        try:
            found = read_model(path)
        except WeightsError as error:
            raise RunError(f"model.init_from: {error}") from error
    backbone = found.backbone if isinstance(found, HDC) else found
    shapes = [[tuple(v.shape) for v in network.variables] for network in (backbone, model.backbone)]
    if shapes[0] != shapes[1]:
        raise RunError(
            f"model.init_from: the weights of backbone {backbone.name} in {path} do not fit {model.backbone.name}. Set "
            f"model.backbone to {backbone.name}, or start from other weights."
        )
    model.backbone.set_weights(backbone.get_weights())
    for name, head in model.objective.heads.items():
        other = found.objective.heads.get(name) if isinstance(found, HDC) else None
        if other and [v.shape for v in other.variables] == [v.shape for v in head.variables]:
            head.set_weights(other.get_weights())
