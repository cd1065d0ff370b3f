"""What `evaluate` refuses before it starts. No backend is needed, so the answer comes at once."""

from collections.abc import Sequence
from pathlib import Path

from hdc_keras.config import Experiment
from hdc_keras.data.preparing import Part
from hdc_keras.errors import ConfigError, RunError, WeightsError
from hdc_keras.evaluation.protocols import require_known
from hdc_keras.evaluation.splits import Splits, with_labels_per_class
from hdc_keras.files import require_creatable
from hdc_keras.finetuning.recipes import FINE_TUNING
from hdc_keras.probes.registry import PROBES, require_labels
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.cluster import is_multi_process


def require_usable(
    run: RunDirectory,
    experiment: Experiment,
    protocols: Sequence[str],
    supervised: str | None = None,
    best: bool = False,
    part: Part = Part(),
) -> None:
    """Check everything but the videos and the output: arguments as of `evaluation.job.evaluate`.

    Raises:
        ConfigError: a protocol is unknown or uses no features although `part` is given, `experiment` describes another
            network, or several processes were started.
        RunError: there is no checkpoint.
        WeightsError: there is no file of `supervised` weights.
    """
    require_known(protocols)
    if is_multi_process() and part.of == 1:
        raise ConfigError(
            "evaluation runs in one process, which can use all GPUs of its machine. Start it only once. To extract the "
            "features by several processes first, give each a --part."
        )
    run.require_network_of(experiment)
    if part.of > 1 and (others := [name for name in protocols if name not in PROBES]):
        raise ConfigError(f"--part divides the extraction of features, which `{others[0]}` does not use. Leave it out.")
    run.checkpoints.require(best)
    if supervised and not Path(supervised).is_file():
        raise WeightsError(f"--supervised {supervised}: no such file. Expected a .pth file from torchvision.")


def require_labelled(experiment: Experiment, splits: Splits, protocols: Sequence[str]) -> None:
    """Check that every protocol can evaluate the videos of every split. Raises `DataError`."""
    used = [with_labels_per_class(records, experiment) for records in splits.values()]
    for protocol in protocols:
        validates = protocol in FINE_TUNING and FINE_TUNING[protocol].validation > 0
        for records in used:
            require_labels(protocol, records, validates)


def require_output(run: RunDirectory, out: Path | None) -> None:
    """Check that results can be written to `out`, or to the run if `out` is `None`. Writes nothing.

    Raises:
        ConfigError: `out` holds the evaluation of another run.
        RunError: the folder cannot be written.
    """
    folder = RunDirectory(out or run.path)
    try:
        require_creatable(folder.path / "results")
        if not folder.config_file.exists() and any((folder.path / "results").glob("*.json")):
            raise ConfigError(f"--out {out}: holds results of `evaluate --features`. Choose another folder.")
        if folder.config_file.exists() and folder.experiment() != run.experiment():
            raise ConfigError(f"--out {out}: holds the evaluation of another run. Choose another folder.")
    except OSError as error:
        raise RunError(
            f"{folder.path} cannot be written ({error.strerror or error}). Choose another folder with --out."
        ) from error
