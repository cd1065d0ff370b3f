"""The definition of an export format: how to write a network, load it in the format's runtime, and test it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from hdc_keras.classification.network import ClassNetwork
from hdc_keras.config import Experiment
from hdc_keras.errors import ConfigError
from hdc_keras.export.networks import Network, plain_network

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        name: the value of `--format`.
        file_name: default name in a run's `export/` folder. A name with a suffix is a file, and every file of the
            format must have that suffix; a name without one is a folder.
        summary: one sentence for the model card: what it is and where it runs.
        takes_video: whether it takes uint8 video and returns what `ClipEncoder` or `ClassNetwork` returns. Otherwise it
            takes float clips and is the backbone alone, or a classifier.
        write: writes a network to a path, with its class names if it is a classifier.
        open: loads such a file in its runtime, as a function from a batch to outputs by name.
        read_labels: reads the class names from such a file; there are none if it is no classifier.
        script: example program for the model card; `FILE` stands for the path.
        class_script: example program for a classifier.
        modules: modules that must be importable, besides the package's own requirements.
        extra: the extra of this package that installs those modules.
        needs_tensorflow: whether it can only be written from the TensorFlow backend.
        packages: distributions whose versions the model card lists.
        refuses_short_clips: whether the exported model ends with an error for a clip that is too short for the network.
            Runtimes without assertions return non-finite values.
    """

    name: str
    file_name: str
    summary: str
    takes_video: bool
    write: Callable[[Network, Experiment, Path], None]
    open: Callable[[Path], Callable[[np.ndarray], Outputs]]
    read_labels: Callable[[Path], list[str]]
    script: str
    class_script: str
    modules: tuple[str, ...] = ()
    extra: str | None = None
    needs_tensorflow: bool = True
    packages: tuple[str, ...] = ()
    refuses_short_clips: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether an export is a folder rather than a file."""
        return not Path(self.file_name).suffix

    def require(self, path: Path) -> None:
        """Raise `ConfigError` if a package or backend is missing, or if `path` has the wrong suffix."""
        missing = [name for name in self.modules if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"the format `{self.name}` needs packages that are not installed ({', '.join(missing)}): "
                f"pip install 'hdc-keras[{self.extra}]'"
            )
        backend = keras.backend.backend()
        if self.needs_tensorflow and backend != "tensorflow":
            raise ConfigError(
                f"the format `{self.name}` can only be written with the TensorFlow backend, which loads checkpoints of "
                f"every backend: set KERAS_BACKEND=tensorflow. Received: {backend}"
            )
        suffix = Path(self.file_name).suffix
        if not self.is_folder and path.suffix != suffix:
            raise ConfigError(f"--out {path}: a file in the format `{self.name}` must end in {suffix}.")

    def reference(self, network: Network) -> Callable[[np.ndarray], Outputs]:
        """The Keras network to compare an export with, as a function from a batch to outputs by name."""
        if self.takes_video:
            return lambda batch: as_numpy(network(batch, training=False))
        if isinstance(network, ClassNetwork):
            return lambda batch: as_numpy(network.score(batch))
        backbone = plain_network(network)
        return lambda batch: as_numpy(backbone(batch, training=False))

    def least_frames(self, network: Network) -> int:
        """The smallest number of frames for which no feature map is empty."""
        maps = network.pyramid if self.takes_video else plain_network(network)
        for frames in count(1):
            with suppress(ValueError):
                maps.compute_output_shape((1, frames, network.view_size, network.view_size, 3))
                return frames
        raise AssertionError("unreachable")

    def test_batches(self, network: Network, experiment: Experiment) -> list[np.ndarray]:
        """Two batches that differ in batch size, length, height and width, because an export must accept any of them.

        Returns:
            Arrays (batch, time, height, width, 3): uint8 video, or float32 in [0, 1] for a backbone.
        """
        rng, frames = np.random.default_rng(0), experiment.data.frames
        height, width = network.frame_size if self.takes_video else (network.view_size, network.view_size)
        # The second clip is longer, because temporal pooling would reduce a shorter one to nothing. Its frames are
        # taller and narrower, so that one axis is shrunk and the other enlarged.
        longer, other_size = frames + frames // 2 + 1, (height * 3 // 2, width * 3 // 4)
        time, rows, columns = network.backbone.clip_multiples
        longer += -longer % time
        if not self.takes_video:  # and does not crop
            other_size = (other_size[0] + -other_size[0] % rows, other_size[1] + -other_size[1] % columns)
        clips = [
            _drifting_pattern(rng, shape) for shape in ((2, frames, height, width, 3), (1, longer, *other_size, 3))
        ]
        return [(clip * 255).astype(np.uint8) for clip in clips] if self.takes_video else clips


def _drifting_pattern(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Clips like those of a moving camera: random squares that drift by a pixel per frame, and noise."""
    batch, time, height, width, channels = shape
    squares = rng.random((batch, (height + time) // 4 + 1, (width + time) // 4 + 1, channels), dtype=np.float32)
    scene = squares.repeat(4, axis=1).repeat(4, axis=2)
    drifting = np.stack([scene[:, place : place + height, place : place + width] for place in range(time)], axis=1)
    return 0.8 * drifting + 0.2 * rng.random(shape, dtype=np.float32)


def as_numpy(outputs: Any) -> Outputs:
    """Convert outputs by name to NumPy arrays."""
    return {name: ops.convert_to_numpy(value) for name, value in outputs.items()}
