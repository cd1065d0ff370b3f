"""Pretrained networks, ready to use: from a run or a checkpoint to an encoder of videos."""

import zipfile
import zlib
from pathlib import Path

import keras

from hdc_keras.backbones import VideoBackbone
from hdc_keras.errors import ConfigError, RunError, WeightsError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.model import HDC
from hdc_keras.runs.directory import RunDirectory

_CHECKPOINTS = ("newest", "best")


def load(
    run_or_file: str | Path, *, checkpoint: str = "newest", frame_size: tuple[int, int] | None = None
) -> ClipEncoder:
    """A pretrained network that takes video, on any backend.

    Args:
        run_or_file: a run directory, or a checkpoint (`.keras`).
        checkpoint: of a run directory: "newest" or "best".
        frame_size: (height, width) that frames are resized to in pixels; that of the run's pretraining when `None`. It
            must be given for a checkpoint that is in no run.

    Returns:
        The encoder, not to be trained: uint8 video (batch, time, height, width, 3) of any size to features and
        embeddings by name. Its `backbone` is the network to build on.

    Raises:
        ConfigError: no frame size is known, or the file is a backbone alone.
        RunError: there is no such run or file, no checkpoint, or one that does not fit the run.
        WeightsError: the file cannot be read.

    Example:
        ```python
        encoder = hdc_keras.load("runs/mine")
        outputs = encoder(video)  # (1, 16, 240, 320, 3) uint8 -> {"P2": ..., "P5_temporal": ..., "embedding": ...}
        ```
    """
    path = Path(run_or_file)
    if path.is_dir():
        run = RunDirectory(path)
        experiment = run.experiment()
        model, _ = load_checkpoint(run, checkpoint)
        return ClipEncoder(model, frame_size or experiment.data.decode_size)
    if checkpoint != "newest":
        raise ConfigError(f"checkpoint={checkpoint!r} chooses one of a run's checkpoints, and {path} is a file.")
    if not path.exists():
        raise RunError(f"{path} does not exist: expected a run directory or a checkpoint (.keras).")
    model = _read(path)
    run = RunDirectory(path.resolve().parent.parent)
    if path.resolve().parent == run.checkpoints.folder and run.config_file.exists():
        run.check_model(model, path)
        frame_size = frame_size or run.experiment().data.decode_size
    if frame_size is None:
        raise ConfigError(
            f"{path} is in no run, whose config.yaml would tell the size that frames are resized to. Give it, as in "
            "frame_size=(128, 171): `data.decode_size` of its pretraining."
        )
    return ClipEncoder(model, frame_size)


def load_checkpoint(run: RunDirectory, checkpoint: str) -> tuple[HDC, Path]:
    """The model of a run's "newest" or "best" checkpoint, and its file.

    Raises:
        ConfigError: neither was asked for.
        RunError: there is none, or it does not fit the run.
    """
    if checkpoint not in _CHECKPOINTS:
        raise ConfigError(f"unknown checkpoint `{checkpoint}`. Known: {', '.join(_CHECKPOINTS)}.")
    return run.checkpoints.load(best=checkpoint == "best")


def _read(file: Path) -> HDC:
    try:
        model = keras.models.load_model(file, compile=False)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise WeightsError(f"{file} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if isinstance(model, VideoBackbone):
        raise ConfigError(
            f"{file} holds a backbone alone ({model.name}), without the projection heads of an encoder. Load it with "
            "keras.models.load_model, after `import hdc_keras.backbones`."
        )
    if not isinstance(model, HDC):
        raise ConfigError(f"{file} holds a {type(model).__name__}, not a checkpoint of HDC.")
    return model
