"""`hdc-keras embed`."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from hdc_keras.features.embedding import Embedded

_FAILURES_SHOWN = 20


def embed(
    run: Annotated[Path, typer.Option(help="Run directory of a pretraining run.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    data: Annotated[
        str | None,
        typer.Option(help="Videos, labelled or not: a folder, a manifest, a prepared set. The run's own if not given."),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="newest or best.")] = "newest",
    videos_per_part: Annotated[int, typer.Option(min=1, help="Videos saved at once: what a kill may cost.")] = 256,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as in evaluate.clips=5. Repeatable.")
    ] = None,
) -> None:
    """Write the embeddings of every video to a parquet file, a row a video: for search, clustering, your own models.

    Columns: video_id, path, label (or several), split and group where the set has them, and float32 vectors of fixed
    length: each level (P2 ... P5), each level and task (P2_spatial, P5_temporal, ...) and all tasks joined (embedding),
    averaged over evenly spaced clips. Stopped or killed at any moment, the same command goes on where it was. Videos
    that cannot be decoded are named, and listed in a CSV beside the file.

    Examples:
      hdc-keras embed --run runs/mine --data path/to/videos --out videos.parquet
      hdc-keras embed --run runs/mine --out own.parquet --checkpoint best --set evaluate.clips=5
    """
    from hdc_keras.config import load_experiment
    from hdc_keras.errors import ConfigError
    from hdc_keras.runs.directory import RunDirectory

    from .console import NamedBars, console, errors, progress_bar, start_backend
    from .experiments import other_videos

    if out.suffix != ".parquet" or ":/" in out.as_posix():  # a URL, of which a path keeps one slash
        raise ConfigError(f"--out {out}: expected a local file ending in .parquet.")
    if checkpoint not in ("newest", "best"):
        raise ConfigError(f"--checkpoint {checkpoint}: expected newest or best.")
    directory = RunDirectory(run)
    directory.experiment()
    experiment = load_experiment(directory.config_file, [*other_videos(data), *(set_ or [])])

    from hdc_keras.features.embedding_table import check_free

    check_free(out)
    start_backend()
    from hdc_keras.data.from_experiment import load_videos
    from hdc_keras.features.embedding import embed as embed_videos
    from hdc_keras.features.embedding import read_videos

    try:
        with progress_bar() as bar:
            rendering = partial(NamedBars(bar), "rendering moving shapes")
            records, notes = read_videos(experiment) if data else load_videos(experiment, rendering)
            console.print("".join(f"{note}\n" for note in notes), end="", markup=False, highlight=False)
            outcome = embed_videos(
                directory,
                experiment,
                records,
                out,
                best=checkpoint == "best",
                videos_per_part=videos_per_part,
                progress=_Speed(bar),
                warn=lambda message: errors.print(message, style="yellow", markup=False),
            )
    except KeyboardInterrupt:
        errors.print("What is embedded is kept: the same command goes on from there.")
        raise
    _say(outcome, out)


class _Speed:
    """A bar with videos a second, counted from where this process began, and failures so far."""

    def __init__(self, progress: "Progress"):
        self.progress = progress
        self._task: TaskID | None = None
        self._began = 0.0
        self._first = 0

    def __call__(self, done: int, total: int, failed: int) -> None:
        if self._task is None:
            self._began, self._first = time.monotonic(), done
            # Not moved there: what an earlier process did says nothing of the time that is left.
            self._task = self.progress.add_task("embedding videos", total=total, completed=done, note="")
        speed = (done - self._first) / max(time.monotonic() - self._began, 1e-9)
        note = f"{speed:.1f} videos/s" + (f", {failed} failed" if failed else "")
        self.progress.update(self._task, completed=done, note=note)


def _say(outcome: "Embedded", out: Path) -> None:
    from hdc_keras.features.embedding_table import failures_file

    from .console import console

    for failure in outcome.failed[:_FAILURES_SHOWN]:
        console.print(f"{failure['file']}: {failure['cause']}", style="red", markup=False, soft_wrap=True)
    if outcome.failed:
        more = f"and {len(outcome.failed) - _FAILURES_SHOWN} more; " if len(outcome.failed) > _FAILURES_SHOWN else ""
        console.print(f"{more}{failures_file(out)} has all", style="red", markup=False, soft_wrap=True)
    columns = ", ".join(f"{name} ({width})" for name, width in outcome.widths.items())
    console.print(f"Columns: {columns}", soft_wrap=True)
    console.print(
        f"{outcome.rows} of {outcome.asked} videos are embedded, {len(outcome.failed)} failed: [bold]{out}[/], from "
        f"{outcome.checkpoint}",
        soft_wrap=True,
    )
