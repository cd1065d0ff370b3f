"""Load a pretrained network from a run or a checkpoint."""

import os
from pathlib import Path

from hdc_keras.backbones import VideoBackbone
from hdc_keras.errors import ConfigError, RunError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.model import HDC
from hdc_keras.runs.checkpoints import is_best, require_weights
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.model_files import read_model


def load(
    run_or_file: str | Path,
    *,
    checkpoint: str = "newest",
    weights: str = "auto",
    frame_size: tuple[int, int] | None = None,
) -> ClipEncoder:
    """Load a pretrained network that encodes videos, on any backend.

    Args:
        run_or_file: a run directory, or a checkpoint (`.keras`).
        checkpoint: "newest" or "best"; only for a run directory.
        weights: "raw", "ema" for their moving averages, or "auto" for the averages if the model keeps them.
        frame_size: (height, width) in pixels to which frames are resized. Defaults to the `data.decode_size` of the
            run; required for a checkpoint outside a run directory.

    Returns:
        The encoder, for inference only. It maps uint8 video (batch, time, height, width, 3) of any size to a dict of
        features and embeddings. To fine-tune or build another model, use its `backbone`.

    Raises:
        ConfigError: `run_or_file` is not a path, the frame size is unknown, the file is not a checkpoint of `HDC`, or
            it keeps no moving averages.
        RunError: the run or file does not exist, or the run has no checkpoint that fits its config.
        WeightsError: the file cannot be read.

    Example:
        ```python
        encoder = hdc_keras.load("runs/mine")
        outputs = encoder(video)  # (1, 16, 240, 320, 3) uint8 -> {"P2": ..., "P5_temporal": ..., "embedding": ...}
        ```
    """
    if not isinstance(run_or_file, str | os.PathLike):
        raise ConfigError(
            f'hdc_keras.load(run_or_file): expected the path of a run directory or a checkpoint, such as "runs/mine". '
            f"Received: {run_or_file!r}"
        )
    path = Path(run_or_file)
    if path.is_dir():
        run = RunDirectory(path)
        experiment = run.experiment()
        model, _ = load_checkpoint(run, checkpoint, weights)
        return ClipEncoder(model, frame_size or experiment.data.decode_size)
    if checkpoint != "newest":
        raise ConfigError(f"checkpoint={checkpoint!r} selects one of a run's checkpoints, but {path} is a file.")
    if not path.exists():
        raise RunError(f"{path} does not exist: expected a run directory or a checkpoint (.keras).")
    model = _load_file(path)
    run = RunDirectory(path.resolve().parent.parent)
    if path.resolve().parent == run.checkpoints.folder and run.config_file.exists():
        run.check_model(model, path)
        frame_size = frame_size or run.experiment().data.decode_size
    if require_weights(weights) == "ema" or (weights == "auto" and model.averages):
        model.use_averages()
    if frame_size is None:
        raise ConfigError(
            f"{path} is not in a run directory, so the size to which frames are resized is unknown. Pass it, for "
            "example frame_size=(128, 171): the `data.decode_size` used for pretraining."
        )
    return ClipEncoder(model, frame_size)


def load_checkpoint(run: RunDirectory, checkpoint: str, weights: str = "auto") -> tuple[HDC, Path]:
    """Load the "newest" or the "best" checkpoint of a run, with weights as in `load`.

    Returns:
        The model and its file.

    Raises:
        ConfigError: `checkpoint` or `weights` is unknown, or the run keeps no moving averages.
        RunError: the run has no such checkpoint, or it does not fit the run's config.
    """
    return run.checkpoints.load(best=is_best(checkpoint), weights=require_weights(weights))


def _load_file(file: Path) -> HDC:
    model = read_model(file)
    if isinstance(model, VideoBackbone):
        raise ConfigError(
            f"{file} holds only a backbone ({model.name}), without the projection heads of an encoder. Load it with "
            "keras.models.load_model, after `import hdc_keras.backbones`."
        )
    if not isinstance(model, HDC):
        raise ConfigError(f"{file} holds a {type(model).__name__}, not a checkpoint of HDC.")
    return model
