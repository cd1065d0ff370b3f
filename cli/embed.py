"""`hdc-keras embed`."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from hdc_keras.features.embed_job import Embedded

_FAILURES_SHOWN = 20


def embed(
    run: Annotated[Path, typer.Option(help="Run directory of a pretraining run.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Videos to embed, with or without labels: a folder, a manifest, tar files or a prepared set.",
            show_default="the videos of the run",
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint to use: newest or best.")] = "newest",
    weights: Annotated[
        str, typer.Option(help="raw, ema (moving averages of train.ema), or auto: ema if the run keeps them.")
    ] = "auto",
    part: Annotated[
        str,
        typer.Option(help="I/N: extract only the I-th of N parts and write no file. Run without --part afterwards."),
    ] = "1/1",
    features: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the extracted features.", show_default="features/ of the run"),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            help="Where to work: here; ray, the Ray cluster of this machine, or a new one; or the address of a Ray "
            "cluster, HOST:PORT or ray://HOST:PORT. All its nodes must share --run, --features and --data."
        ),
    ] = "here",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a config key, as in evaluate.clips=5. Repeatable."),
    ] = None,
) -> None:
    """Write the embeddings of videos to a Parquet file, one row per video.

    Use the file for search, for clustering, or as input to your own models. Its columns are video_id, path, label (or
    label_NAME for each of several label columns), split, group, and float32 vectors of fixed length: one for each
    level (P2 ... P5), one for each level and task (P2_spatial, P5_temporal, ...), and embedding, which concatenates
    the tasks. Vectors are averaged over evenly spaced clips.

    After an interruption, run the same command again to resume. Several processes may run the same command at once,
    also on machines that share a disk: they divide the videos among themselves. With --on, the machines of a Ray
    cluster do (see docs/machines.md). Videos that cannot be decoded are printed, and listed in a CSV file next to the
    Parquet file.

    Examples:
      hdc-keras embed --run runs/mine --data path/to/videos --out videos.parquet
      hdc-keras embed --run runs/mine --out videos.parquet --checkpoint best \\
        --set evaluate.clips=5
      hdc-keras embed --run runs/mine --data path/to/videos --out videos.parquet \\
        --part $((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT
      hdc-keras embed --run runs/mine --data path/to/videos --out videos.parquet \\
        --on 10.0.0.1:6379
    """
    from hdc_keras.config import load_experiment
    from hdc_keras.data.from_experiment import load_undivided_videos, load_videos
    from hdc_keras.data.preparing import Part
    from hdc_keras.engines import engine_on
    from hdc_keras.errors import ConfigError
    from hdc_keras.runs.checkpoints import is_best, require_weights
    from hdc_keras.runs.directory import RunDirectory

    from .console import NamedBars, console, errors, print_notes, progress_bar, start_backend
    from .experiments import other_videos

    if out.suffix != ".parquet" or ":/" in out.as_posix():  # Path("s3://bucket") becomes "s3:/bucket"
        raise ConfigError(f"--out {out}: expected a local file ending in .parquet.")
    best = is_best(checkpoint)
    share = Part.parse(part)
    directory = RunDirectory(run)
    directory.experiment()
    experiment = load_experiment(directory.config_file, set_, literals=other_videos(data))
    require_weights(weights, experiment)

    from hdc_keras.features.embedding_table import check_free

    check_free(out)
    directory.require_network_of(experiment)
    directory.checkpoints.require(best)
    with engine_on(on) as engine, progress_bar() as bar:
        rendering = partial(NamedBars(bar), "rendering moving shapes")
        records, notes = load_undivided_videos(experiment) if data else load_videos(experiment, rendering)
        print_notes(notes)
        start_backend()
        from hdc_keras.features.embed_job import embed as embed_videos

        outcome = embed_videos(
            directory,
            experiment,
            records,
            out,
            best=best,
            weights=weights,
            store=features,
            part=share,
            progress=_EmbeddingBar(bar),
            warn=lambda message: errors.print(message, style="yellow"),
            engine=engine,
        )
    if outcome is None:
        console.print(f"Part {part} is extracted. Once all parts are, run the command without --part to write {out}.")
    else:
        _print_outcome(outcome, out)


class _EmbeddingBar:
    """A progress bar that shows this process's videos per second, and the failures so far."""

    def __init__(self, progress: "Progress"):
        self.progress = progress
        self._task: TaskID | None = None
        self._began = 0.0
        self._first = 0

    def __call__(self, done: int, total: int, failed: int) -> None:
        if self._task is None:
            self._began, self._first = time.monotonic(), done
            # Videos of an earlier process are set here, not by `update`, which would count them as instant progress
            # and underestimate the remaining time.
            self._task = self.progress.add_task("embedding videos", total=total, completed=done, note="")
        speed = (done - self._first) / max(time.monotonic() - self._began, 1e-9)
        note = f"{speed:.1f} videos/s" + (f", {failed} failed" if failed else "")
        self.progress.update(self._task, completed=done, note=note)


def _print_outcome(outcome: "Embedded", out: Path) -> None:
    from hdc_keras.features.embedding_table import failures_file

    from .console import console, print_failures, print_parts

    print_failures([f"{failure['file']}: {failure['cause']}" for failure in outcome.failed], _FAILURES_SHOWN)
    if outcome.failed:
        console.print(f"{failures_file(out)} lists every failure.", style="red", soft_wrap=True)
    columns = ", ".join(f"{name} ({width})" for name, width in outcome.widths.items())
    console.print(f"Columns: {columns}", soft_wrap=True)
    print_parts(
        f"Embedded {outcome.rows} of {outcome.asked} videos, {len(outcome.failed)} failed: ",
        (str(out), "bold"),
        f", from {outcome.checkpoint}",
        soft_wrap=True,
    )
