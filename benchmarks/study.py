"""What the studies share: one pretraining and evaluation through the commands, at equal compute, a thread a run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from hdc_keras.config import Experiment, load_experiment
from hdc_keras.views.generator import ViewGenerator

Item = TypeVar("Item")


def clips_an_epoch(experiment: Experiment, videos: int) -> int:
    """Clips through the backbone in one pass over the training videos."""
    views = len(ViewGenerator(experiment.views, experiment.contrast.task).view_names)
    return videos // experiment.train.batch_size * experiment.train.batch_size * views


def equal_compute(config: Path, common: list[str], changes: list[str], preset: str, videos: int) -> tuple[int, int]:
    """Epochs that give a variant as many clips as the preset `hdc` has in this config, and these clips.

    Args:
        config: the study's config.
        common: `--set` values of all variants.
        changes: the variant's own.
        preset: the variant's.
        videos: in the training split.
    """
    hdc = load_experiment(config, common, "hdc")
    an_epoch = clips_an_epoch(load_experiment(config, [*common, *changes], preset), videos)
    epochs = round(hdc.train.epochs * clips_an_epoch(hdc, videos) / an_epoch)
    return epochs, epochs * an_epoch


def train_and_judge(
    directory: Path, config: Path, preset: str, overrides: Sequence[str], protocols: Sequence[str], threads: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`hdc-keras pretrain`, then `hdc-keras evaluate`, in processes of their own; the run directory does not stay.

    Returns:
        Result by protocol, and the run's `environment.json`.
    """
    shutil.rmtree(directory, ignore_errors=True)
    command = Path(sys.executable).parent / "hdc-keras"
    environment = os.environ | {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads)}
    sets = [argument for override in overrides for argument in ("--set", override)]
    asked = [argument for protocol in protocols for argument in ("--protocol", protocol)]
    log_file = directory.with_suffix(".log")
    for arguments in (
        ["pretrain", "--config", config, "--preset", preset, *sets, "--run", directory],
        ["evaluate", "--run", directory, *asked],
    ):
        with log_file.open("a") as log:
            done = subprocess.run([command, *map(str, arguments)], env=environment, stdout=log, stderr=log)
        if done.returncode:
            raise SystemExit(f"`hdc-keras {arguments[0]}` failed; see {log_file}")
    results = {}
    for protocol in protocols:
        (file,) = (directory / "results").glob(f"{protocol}-*.json")
        results[protocol] = json.loads(file.read_text())
    made_with = json.loads((directory / "environment.json").read_text())
    shutil.rmtree(directory)
    return results, made_with


def keep(file: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1))
    temporary.replace(file)


def in_parallel(job: Callable[[Item], object], items: Sequence[Item], jobs: int) -> Iterator[Item]:
    """Run a job for every item, some at a time; yields each when it and all before it are done."""
    with ThreadPoolExecutor(jobs) as executor:
        for item, _ in zip(items, executor.map(job, items), strict=True):
            yield item
