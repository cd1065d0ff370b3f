"""What all protocols of one evaluation share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hdc_keras.config import Experiment
from hdc_keras.evaluation.splits import Splits
from hdc_keras.model import HDC
from hdc_keras.runs.directory import RunDirectory

# (what is being done, done, total).
Progress = Callable[[str, int, int], None]

# How progress names each network. The keys are those of a result.
NETWORK_TITLES = {"metrics": "pretrained", "random_weights": "random weights", "supervised": "supervised"}


@dataclass(frozen=True)
class Evaluation:
    """The inputs of every protocol.

    Attributes:
        run: the run that is evaluated.
        experiment: the experiment of the run, or a copy with other `data` or `evaluate` sections.
        splits: the videos by the name of the split.
        networks: the networks to compare: "metrics" (the pretrained one), "random_weights", and maybe "supervised".
        checkpoint: file of the pretrained weights.
        progress: called with (what is being done, done, total).
    """

    run: RunDirectory
    experiment: Experiment
    splits: Splits
    networks: dict[str, HDC]
    checkpoint: Path
    progress: Progress | None

    @property
    def seeds(self) -> list[int]:
        """`evaluate.seeds` consecutive seeds, starting with the seed of the experiment."""
        return list(range(self.experiment.seed, self.experiment.seed + self.experiment.evaluate.seeds))

    def report(self, title: str) -> Callable[[int, int], None]:
        """A progress function for the task of that title: called with (done, total)."""
        return lambda done, total: self.progress(title, done, total) if self.progress else None

    def title(self, *words: str, split: str, seed: int | None = None) -> str:
        """Describe a task; split and seed are only named if there are several."""
        named = [f"split {split}"] if len(self.splits) > 1 else []
        if seed is not None and len(self.seeds) > 1:
            named.append(f"seed {seed}")
        return ", ".join([*words, *named])
