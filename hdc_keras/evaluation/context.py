"""The inputs that all protocols of one evaluation share. No backend is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hdc_keras.config import Experiment
from hdc_keras.evaluation.splits import Splits
from hdc_keras.runs.directory import RunDirectory

if TYPE_CHECKING:  # loads a backend
    from hdc_keras.model import HDC

# (description of the current task, items done, total items).
Progress = Callable[[str, int, int], None]

# Name of each network in progress reports, by its key in a result.
NETWORK_TITLES = {"metrics": "pretrained", "random_weights": "random weights", "supervised": "supervised"}


@dataclass(frozen=True)
class Asked:
    """What is asked of features, wherever they are from.

    Attributes:
        output: where results, features and fine-tunings are written: the run itself, or another folder.
        experiment: the experiment of the run, or a copy with other `data` or `evaluate` sections.
        splits: the videos of each split, by its name.
        progress: called with (description of the current task, items done, total items).
    """

    output: RunDirectory
    experiment: Experiment
    splits: Splits
    progress: Progress | None

    @property
    def seeds(self) -> list[int]:
        """`evaluate.seeds` consecutive seeds, starting with the seed of the experiment."""
        return list(range(self.experiment.seed, self.experiment.seed + self.experiment.evaluate.seeds))

    def report(self, title: str) -> Callable[[int, int], None]:
        """Make a function that reports the progress of one task; it is called with (items done, total items)."""
        return lambda done, total: self.progress(title, done, total) if self.progress else None

    def title(self, *words: str, split: str, seed: int | None = None) -> str:
        """Describe a task. Split and seed are named only if there are several."""
        named = [f"split {split}"] if len(self.splits) > 1 else []
        if seed is not None and len(self.seeds) > 1:
            named.append(f"seed {seed}")
        return ", ".join([*words, *named])


@dataclass(frozen=True)
class Evaluation(Asked):
    """The inputs of every protocol on the network of a run.

    Attributes:
        networks: the networks to compare: "metrics" (the pretrained one), "random_weights", and maybe "supervised".
        checkpoint: file of the pretrained weights. It may be gone: a run that is still trained deletes old checkpoints.
        weights_sha256: SHA-256 of that file when it was loaded.
        supervised: the file of the "supervised" weights, if there are any.
    """

    networks: "dict[str, HDC]"
    checkpoint: Path
    weights_sha256: str
    supervised: Path | None = None
