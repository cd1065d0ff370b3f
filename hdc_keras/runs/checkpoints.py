"""The checkpoints of a run: saves them atomically, prunes them, keeps the best one, and skips damaged ones."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment
from hdc_keras.errors import ConfigError, RunError, WeightsError
from hdc_keras.files import link_or_copy, remove_leftovers, replacing, write_text

_FOLDER = "checkpoints"
_BEST_NOTE = "best.json"


class Checkpoints:
    """The checkpoints of a run directory: `.keras` files, named after the step at which they were saved.

    Args:
        run: the run directory.
        check_model: called with a loaded model and its file; raises `RunError` if the model does not belong to the run.
        unwritable: called with a file that cannot be written and the `OSError`; returns the error to raise.
    """

    def __init__(
        self,
        run: Path,
        check_model: Callable[[Any, Path], None],
        unwritable: Callable[[Path, OSError], RunError],
    ):
        self.run = run
        self.folder = run / _FOLDER
        self._check_model = check_model
        self._unwritable = unwritable

    @property
    def best(self) -> Path:
        """The best checkpoint so far (see `keep_best`), a copy of a numbered one."""
        return self.folder / "best.keras"

    def files(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.keras"))

    def newest_step(self) -> int:
        """The step of the newest checkpoint that is not damaged; 0 if there is none. Needs no backend."""
        from hdc_keras.runs.model_files import damage_of

        intact = (file for file in self.files()[::-1] if damage_of(file) is None)
        return next((int(file.stem.removeprefix("step-")) for file in intact), 0)

    def save(self, model: Any, step: int, keep: int) -> Path:
        """Save the model with its optimizer and all its state, then delete all but the newest `keep` checkpoints.

        Args:
            model: the model.
            step: number of steps that the model has taken.
            keep: number of checkpoints to keep, including this one.

        Returns:
            The new checkpoint.

        Raises:
            RunError: the checkpoint cannot be written; earlier ones are unchanged.
        """
        file = self.folder / f"step-{step:09d}.keras"
        try:
            with replacing(file, suffix=".keras") as temporary:
                model.save(temporary)
        except OSError as error:
            raise self._unwritable(file, error) from error
        for old in self.files()[:-keep]:
            old.unlink()
        return file

    def keep_best(self, checkpoint: Path, by: str, score: float) -> None:
        """Keep a copy of `checkpoint` if it is the best so far. Any kNN check among training videos beats any loss.

        Args:
            checkpoint: a saved checkpoint.
            by: what `score` is, "knn_train" or "loss". Version 0.1.0 wrote "knn" for a check on test videos; any kNN
                check among training videos beats it.
            score: its score; higher is better, so a loss is passed with its sign changed.

        Raises:
            RunError: the copy cannot be written.
        """
        note = self.run / _BEST_NOTE
        try:
            best_so_far = json.loads(note.read_text()) if note.exists() and self.best.exists() else None
        except ValueError:
            best_so_far = None
        if best_so_far and (best_so_far["by"] == "knn_train", best_so_far["score"]) >= (by == "knn_train", score):
            return
        try:
            link_or_copy(checkpoint, self.best)
            write_text(note, json.dumps({"by": by, "score": score, "checkpoint": checkpoint.stem}))
        except OSError as error:
            raise self._unwritable(self.best, error) from error

    def require(self, best: bool = False) -> None:
        """Raise `RunError` if there is no checkpoint, or no best one. None is read."""
        if best and not self.best.exists():
            raise RunError(f"{self.run} has no best checkpoint yet: no checkpoint was saved at the end of an epoch.")
        if not best and not self.files():
            raise RunError(f"{self.folder} holds no checkpoint: the run ended before it saved one.")

    def load(
        self,
        compiled: bool = False,
        best: bool = False,
        warn: Callable[[str], None] | None = None,
        weights: str = "raw",
    ) -> tuple[Any, Path]:
        """Load the newest readable checkpoint, or the best one.

        Args:
            compiled: whether to load the optimizer too, to continue training.
            best: load the best checkpoint (see `keep_best`), not the newest.
            warn: called with a message for every damaged checkpoint that is skipped; `warnings.warn` when `None`.
            weights: "raw", "ema" for their moving averages, or "auto" for the averages if the run keeps them.

        Returns:
            The model and its file.

        Raises:
            ConfigError: averages are asked for, but the run keeps none.
            RunError: there is no checkpoint, all are damaged, or the model does not match the run's config.
        """
        self.require(best)
        from hdc_keras.runs.model_files import read_model

        damaged = []
        for file in [self.best] if best else self.files()[::-1]:
            try:
                model = read_model(file, compiled)
            except WeightsError as error:
                damaged.append(str(error))
                continue
            for problem in damaged:
                (warn or warnings.warn)(f"{problem} It is skipped: {file.name} is used.")
            self._check_model(model, file)
            if weights == "ema" or (weights == "auto" and model.averages):
                model.use_averages()
            return model, file
        raise RunError("\n".join(damaged))

    def remove_unfinished(self) -> None:
        """Delete unfinished files of killed processes. Do not call this while another process trains in the run."""
        if self.folder.exists():
            remove_leftovers(self.folder)


def is_best(checkpoint: str) -> bool:
    """Whether a user asks for the best checkpoint ("best"), and not for the newest ("newest").

    Raises:
        ConfigError: it is neither of the two.
    """
    if checkpoint not in ("newest", "best"):
        raise ConfigError(f"checkpoint `{checkpoint}`: expected newest or best.")
    return checkpoint == "best"


def require_weights(weights: str, experiment: Experiment | None = None) -> str:
    """Check a user's choice of weights, and return it.

    Args:
        weights: the choice.
        experiment: that of the run, if it is known.

    Raises:
        ConfigError: it is none of "auto", "raw" and "ema", or the run keeps no moving averages.
    """
    if weights not in ("auto", "raw", "ema"):
        raise ConfigError(f"weights `{weights}`: expected auto, raw or ema.")
    if weights == "ema" and experiment and not (experiment.train.ema or experiment.contrast.negatives == "queue"):
        raise ConfigError("weights `ema`: the run keeps no moving averages; its `train.ema` is empty. Use raw.")
    return weights
