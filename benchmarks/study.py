"""Shared by the studies: files of results, tables in the docs, and runs at equal compute.

This file is imported by `ablation.py`, `real_video.py`, `few_labels.py` and `fine_tuning.py`. It has no command.

A study is a JSONL file in `studies/`. Each line is one finished run with everything that its table needs. Runs that are
already in the file are not repeated, and the tables in the docs can be written again from the file alone.
"""

import csv
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from hdc_keras.config import Experiment, load_experiment
from hdc_keras.files import write_text
from hdc_keras.views.generator import ViewGenerator

Item = TypeVar("Item")
Run = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "studies"
DOCS = ROOT / "docs"
BOOTSTRAP_DRAWS = 10_000


class Study:
    """The runs of one study, in a JSONL file that several threads and processes may add to.

    Args:
        file: the JSONL file; it need not exist yet.
        key: the fields that identify a run, for example `("variant", "seed")`. Lines are sorted by them.
    """

    def __init__(self, file: Path, key: Sequence[str]):
        self.file = file
        self.key = tuple(key)
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The file's name without suffix. Tables and figures made from this study carry it."""
        return self.file.stem

    def runs(self) -> list[Run]:
        """All runs, sorted by the study's key."""
        if not self.file.exists():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return sorted(map(json.loads, lines), key=self._identity)

    def by_variant(self) -> dict[str, list[Run]]:
        """Runs by their field `variant`."""
        found: dict[str, list[Run]] = {}
        for run in self.runs():
            found.setdefault(run["variant"], []).append(run)
        return found

    def has(self, *identity: Any) -> bool:
        """Whether a run with these values of the key's fields is in the file."""
        return any(self._identity(run) == identity for run in self.runs())

    def add(self, *runs: Run) -> None:
        """Write runs to the file. A run with the same key is replaced."""
        with self._exclusive():
            self._write({self._identity(run): run for run in [*self.runs(), *runs]}.values())

    def replace_variant(self, variant: str, runs: Sequence[Run]) -> None:
        """Write the runs of a variant to the file, in place of those that it holds."""
        with self._exclusive():
            self._write([*(run for run in self.runs() if run["variant"] != variant), *runs])

    def _write(self, runs: Iterable[Run]) -> None:
        lines = [json.dumps(run) for run in sorted(runs, key=self._identity)]
        write_text(self.file, "\n".join([*lines, ""]))

    def _identity(self, run: Run) -> tuple[Any, ...]:
        return tuple(run[field] for field in self.key)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Excludes other threads and, by a lock on the folder, other processes."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            folder = os.open(self.file.parent, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                yield
            finally:
                os.close(folder)


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the part of a Markdown page that a study writes.

    The part lies between `<!-- begin NAME ... -->` and `<!-- end NAME -->`. A page without such a part gets one at its
    end.

    Args:
        page: the Markdown file.
        name: name of the section.
        text: new content, in Markdown.
    """
    content = page.read_text(encoding="utf-8")
    found = re.search(rf"(<!-- begin {re.escape(name)}\b[^>]*-->\n).*?(<!-- end {re.escape(name)} -->)", content, re.S)
    if found:
        content = f"{content[: found.end(1)]}\n{text.strip()}\n\n{content[found.start(2) :]}"
    else:
        content = f"{content.rstrip()}\n\n<!-- begin {name} -->\n\n{text.strip()}\n\n<!-- end {name} -->\n"
    write_text(page, content)


def clips_per_step(experiment: Experiment) -> int:
    """Clips that pass through the backbone in one step."""
    return experiment.train.batch_size * len(ViewGenerator(experiment.views, experiment.contrast.task).view_names)


def equal_compute(config: Path, common: list[str], changes: list[str], preset: str, videos: int) -> tuple[str, int]:
    """The length at which a variant processes as many clips as the preset `hdc` does in this config.

    Args:
        config: config file of the study.
        common: `--set` values of all variants.
        changes: `--set` values of this variant.
        preset: preset of this variant.
        videos: number of training videos.

    Returns:
        The `--set` value of the length, in epochs or steps as in the config, and the number of clips.
    """
    hdc = load_experiment(config, common, "hdc")
    variant = load_experiment(config, [*common, *changes], preset)
    steps_per_pass = videos // hdc.train.batch_size
    clips = hdc.train.length(steps_per_pass).steps * clips_per_step(hdc)
    if hdc.train.steps:
        steps = round(clips / clips_per_step(variant))
        return f"train.steps={steps}", steps * clips_per_step(variant)
    per_epoch = videos // variant.train.batch_size * clips_per_step(variant)
    epochs = round(clips / per_epoch)
    return f"train.epochs={epochs}", epochs * per_epoch


def train_and_evaluate(
    directory: Path, config: Path, preset: str, overrides: Sequence[str], protocols: Sequence[str], threads: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`pretrain_and_evaluate` on the run's own videos.

    Returns:
        The evaluation result of each protocol, and the content of the run's `environment.json`.
    """
    found, environment = pretrain_and_evaluate(directory, config, preset, overrides, protocols, threads)
    return {protocol: result for (_, protocol), (result, _) in found.items()}, environment


def pretrain_and_evaluate(
    directory: Path,
    config: Path,
    preset: str,
    overrides: Sequence[str],
    protocols: Sequence[str],
    threads: int,
    sets: Mapping[str, Path] | None = None,
    afterwards: Callable[[Path], object] | None = None,
) -> tuple[dict[tuple[str, str], tuple[Run, list[dict[str, str]]]], dict[str, Any]]:
    """Run `hdc-keras pretrain`, then `hdc-keras evaluate`, as commands. The run directory is deleted at the end.

    Args:
        directory: run directory. The output of the commands goes to a log file beside it.
        config: config file.
        preset: name of the preset.
        overrides: `--set` values.
        protocols: evaluation protocols.
        threads: number of TensorFlow threads.
        sets: manifests of the labelled sets to evaluate on, by name; the run's own videos, named "", if `None`.
        afterwards: called with the run directory before it is deleted.

    Returns:
        The result of each set and protocol with its rows by video, and the content of the run's `environment.json`.
    """
    shutil.rmtree(directory, ignore_errors=True)
    log = directory.with_suffix(".log")
    command(
        log,
        threads,
        "pretrain",
        "--config",
        config,
        "--preset",
        preset,
        *options("--set", overrides),
        "--run",
        directory,
    )
    found = {}
    for name, manifest in (sets or {"": None}).items():
        out = directory / f"evaluated-{name}"
        own = ["--data", manifest] if manifest else []
        command(log, threads, "evaluate", "--run", directory, *own, *options("--protocol", protocols), "--out", out)
        found |= {(name, protocol): evaluated(out, protocol) for protocol in protocols}
    if afterwards:
        afterwards(directory)
    environment_of_run = json.loads((directory / "environment.json").read_text())
    shutil.rmtree(directory)
    return found, environment_of_run


def mean_right(answers: Mapping[int, Mapping[str, int]]) -> float:
    """Mean share of right answers, 0 or 1 by seed and video."""
    return float(np.mean([np.mean(list(of_seed.values())) for of_seed in answers.values()]))


def paired_difference(
    first: Mapping[int, Mapping[str, int]], second: Mapping[int, Mapping[str, int]], group_of: Mapping[str, int]
) -> tuple[float, float, float]:
    """Difference in the share of right answers, with its 95 % interval.

    The interval is from a paired bootstrap that draws groups of videos and seeds with replacement. A bootstrap of few
    groups is too narrow, so it is widened by what makes it right for normal means: by 25 % for 9 groups, and by 2 % for
    100. With one seed it says nothing of how another training would differ.

    Args:
        first: 0 or 1 by seed and video.
        second: the same for what it is compared with; only seeds that both have count.
        group_of: the group of each video.
    """
    seeds = sorted(first.keys() & second.keys())
    videos = sorted(first[seeds[0]])
    if any(sorted(answers[seed]) != videos for answers in (first, second) for seed in seeds):
        raise ValueError("seeds with other videos cannot be paired")
    gaps = np.array([[first[seed][video] - second[seed][video] for video in videos] for seed in seeds], float)
    groups = sorted({group_of[video] for video in videos})
    rows = np.array([groups.index(group_of[video]) for video in videos])
    sums = np.stack([np.bincount(rows, of_seed, len(groups)) for of_seed in gaps])  # (seeds, groups)
    sizes = np.bincount(rows, minlength=len(groups))
    rng = np.random.default_rng(0)
    drawn_groups = rng.integers(0, len(groups), (BOOTSTRAP_DRAWS, len(groups)))
    drawn_seeds = rng.integers(0, len(seeds), (BOOTSTRAP_DRAWS, len(seeds)))
    weights = np.stack([np.bincount(draw, minlength=len(groups)) for draw in drawn_groups])
    by_seed = weights @ sums.T / (weights @ sizes)[:, None]  # (draws, seeds)
    means = np.take_along_axis(by_seed, drawn_seeds, axis=1).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    gap, count = gaps.mean(), len(groups)
    widened = math.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975)
    return float(gap), float(gap + widened * (low - gap)), float(gap + widened * (high - gap))


def command(log: Path, threads: int, *arguments: Any) -> None:
    """Run `hdc-keras` with some threads of TensorFlow, and append its output to a log. A failure ends the study."""
    environment = os.environ | {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads)}
    line = [Path(sys.executable).parent / "hdc-keras", *map(str, arguments)]
    with log.open("a") as file:
        done = subprocess.run(line, env=environment, stdout=file, stderr=file)
    if done.returncode:
        raise SystemExit(f"`hdc-keras {arguments[0]}` failed with exit code {done.returncode}; see {log}")


def evaluated(out: Path, protocol: str) -> tuple[Run, list[dict[str, str]]]:
    """The only result of a protocol that `evaluate --out` wrote, and its rows by video, if there are any."""
    (file,) = (out / "results").glob(f"{protocol}-*.json")
    rows = file.with_suffix(".videos.csv")
    if not rows.exists():
        return json.loads(file.read_text()), []
    with rows.open(newline="") as stream:
        return json.loads(file.read_text()), list(csv.DictReader(stream))


def digest_of_code(config: Path) -> str:
    """Of the package and a config: runs with the same digest were made by the same code."""
    files = [config, *sorted((ROOT / "hdc_keras").rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def options(name: str, values: Sequence[str]) -> list[str]:
    """Command line arguments that give an option several times."""
    return [argument for value in values for argument in (name, value)]


def in_parallel(job: Callable[[Item], object], items: Sequence[Item], jobs: int) -> Iterator[Item]:
    """Run a job for every item, `jobs` at a time. Yields the items in order, each when it is done."""
    with ThreadPoolExecutor(jobs) as executor:
        for item, _ in zip(items, executor.map(job, items), strict=True):
            yield item
