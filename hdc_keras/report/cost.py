"""The cost of a run: time, steps, devices, parameters."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from hdc_keras.config import Experiment
from hdc_keras.model import HDC
from hdc_keras.report.curves import Row


def run_cost(
    experiment: Experiment,
    environment: Mapping[str, Any],
    metrics: Sequence[Row],
    model: HDC | None,
    checkpoint: Path | None,
    checkpoint_bytes: int,
) -> dict[str, str]:
    """Collect facts about the cost of a run.

    Args:
        experiment: the run's experiment.
        environment: the run's `environment.json`; empty if it is missing.
        metrics: the run's metrics by epoch; empty before the first epoch.
        model: the model of the newest checkpoint, if any.
        checkpoint: the file of that checkpoint. It may be gone: a run that is still trained deletes old ones.
        checkpoint_bytes: its size.

    Returns:
        Text by name, in the order to show.
    """
    cost = _training_cost(metrics) if metrics else {}
    cost["Videos per step"] = f"{experiment.train.batch_size:,}"
    if environment:
        cost["Device"] = f"{', '.join(environment.get('devices') or [])}; {environment.get('cores')} CPU cores"
    cost["Precision"] = experiment.train.precision
    if model is not None:
        heads = sum(head.count_params() for head in model.objective.heads.values())
        cost["Parameters"] = f"{model.backbone.count_params():,} in {model.backbone.name}, {heads:,} in the heads"
    if checkpoint is not None:
        cost["Checkpoint"] = f"{checkpoint.name}, {checkpoint_bytes / 1e6:,.1f} MB"
    cost["Backend"] = environment["backend"] if environment else f"{keras.backend.backend()} (of this report)"
    return cost


def _training_cost(metrics: Sequence[Row]) -> dict[str, str]:
    cost = {
        "Training time": duration(sum(row["seconds"] for row in metrics)),
        "Epochs": f"{len(metrics):,}",
        "Steps": f"{metrics[-1]['step']:,.0f}",
        "Clips per second": f"{statistics.median(row['clips_per_second'] for row in metrics):,.0f} (median epoch)",
    }
    waits = [(row["data_wait_share"], row["seconds"]) for row in metrics if "data_wait_share" in row]
    if waits:
        share = sum(part * seconds for part, seconds in waits) / sum(seconds for _, seconds in waits)
        cost["Waiting for data"] = f"{100 * share:.0f}% of the time"
    cost["Failed videos"] = f"{metrics[-1].get('videos_failed', 0):.0f}"
    return cost


def duration(seconds: float) -> str:
    """A duration in words, such as "3 h 2 min" or "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
