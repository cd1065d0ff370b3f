"""What a format is: how a network is written, read back in its own runtime, and tried."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from hdc_keras.config import Experiment
from hdc_keras.errors import ConfigError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.model import HDC

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Format:
    """One way to hand a network on.

    Attributes:
        name: as `--format` takes it.
        file_name: its name in a run's `export/`; a file has a suffix, which all files of this format must have.
        summary: what it is and where it runs, in one sentence.
        takes_video: whether it takes uint8 video and gives what `ClipEncoder` gives; otherwise it is the backbone.
        write: writes a model to a path.
        open: loads such a file in its own runtime, as a function from a batch to outputs by name.
        script: a program that uses the file, with the path as `FILE`.
        modules: what must be importable, besides what the package needs.
        extra: the extra of the package that brings them.
        needs_tensorflow: whether it is written from the TensorFlow backend only.
        packages: distributions whose versions the card names.
    """

    name: str
    file_name: str
    summary: str
    takes_video: bool
    write: Callable[[HDC, Experiment, Path], None]
    open: Callable[[Path], Callable[[np.ndarray], Outputs]]
    script: str
    modules: tuple[str, ...] = ()
    extra: str | None = None
    needs_tensorflow: bool = True
    packages: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        """Whether a folder is written, not a file."""
        return not Path(self.file_name).suffix

    def require(self, path: Path) -> None:
        """Raises `ConfigError` when the format cannot be written here, or not under that name."""
        missing = [name for name in self.modules if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"the format `{self.name}` is written and checked with {', '.join(missing)}, which is not installed: "
                f"pip install 'hdc-keras[{self.extra}]'"
            )
        backend = keras.backend.backend()
        if self.needs_tensorflow and backend != "tensorflow":
            raise ConfigError(
                f"the format `{self.name}` is written from the TensorFlow backend, which reads this run's checkpoints "
                f"as well: run with KERAS_BACKEND=tensorflow. Received: {backend}"
            )
        suffix = Path(self.file_name).suffix
        if not self.is_folder and path.suffix != suffix:
            raise ConfigError(f"--out {path}: a file of the format `{self.name}` must end in {suffix}.")

    def reference(self, model: HDC, experiment: Experiment) -> Callable[[np.ndarray], Outputs]:
        """What the file must agree with: the network in Keras."""
        if self.takes_video:
            network: keras.Model = ClipEncoder(model, experiment.data.decode_size)
        else:
            network = model.backbone.level_model(tuple(model.backbone.pyramid_outputs))
        return lambda batch: as_numpy(network(batch, training=False))

    def probes(self, model: HDC, experiment: Experiment) -> list[np.ndarray]:
        """Two batches that differ in number, length, height and width: every axis must be free."""
        rng, frames = np.random.default_rng(0), experiment.data.frames
        height, width = (
            experiment.data.decode_size if self.takes_video else (model.views_config.size, model.views_config.size)
        )
        # Longer, never shorter: pooling in time leaves nothing of a clip that is too short. Higher and narrower, so
        # that frames are both shrunk and enlarged.
        shapes = (2, frames, height, width, 3), (1, frames + frames // 2 + 1, height * 3 // 2, width * 3 // 4, 3)
        if self.takes_video:
            return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
        return [rng.random(shape, dtype=np.float32) for shape in shapes]


def as_numpy(outputs: Any) -> Outputs:
    """Outputs by name."""
    return {name: ops.convert_to_numpy(value) for name, value in outputs.items()}
