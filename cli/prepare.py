"""`hdc-keras prepare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

_FAILURES_SHOWN = 20


def prepare(
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    data: Annotated[
        str | None, typer.Option(help="Videos: a folder or its URL, a manifest, UCF101, HMDB51, Kinetics.")
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(min=16, help="Keep the videos' shapes, with at most this short side in pixels.")
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=95, help="Quality of the JPEGs.")] = 90,
    fps: Annotated[float | None, typer.Option(min=0.1, help="Frames a second; all frames when not given.")] = None,
    videos_per_shard: Annotated[int, typer.Option(min=1, help="Videos in a shard.")] = 64,
    part: Annotated[str, typer.Option(help="I/N: only one of N machines' share of the shards.")] = "1/1",
    workers: Annotated[int | None, typer.Option(min=1, help="Videos decoded at once; one a core if not given.")] = None,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds after which a video is given up.")] = 600,
    verify: Annotated[bool, typer.Option("--verify", help="Read the shards in --out back instead.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as in data.layout=ucf101. Repeatable.")
    ] = None,
) -> None:
    """Decode videos once, into TFRecord shards of JPEG frames that train several times faster than the files.

    Frames are stored in the size that training reads (`data.decode_size`), which is fastest; with `--short-side` they
    are resized when they are read. Stopped at any moment, the same command goes on where it was. A video that cannot
    be decoded is named in `report.json` with the reason. With `--verify` the exit code is 1 where anything is wrong.

    Examples:
      hdc-keras prepare --data path/to/videos --out prepared
      hdc-keras pretrain --data prepared
      hdc-keras prepare --data s3://bucket/videos --out prepared
      hdc-keras prepare --data kinetics --out prepared --part $((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT
      hdc-keras prepare --out prepared --verify
    """
    from hdc_keras.data.preparing import Part
    from hdc_keras.errors import ConfigError

    if verify:
        raise typer.Exit(_verify(out))
    if data is None:
        raise ConfigError("--data: expected the videos to prepare, or --verify to read back what is in --out.")
    options = {"quality": quality, "fps": fps, "videos_per_shard": videos_per_shard, "time_limit": time_limit}
    _prepare(data, set_ or [], out, short_side, options | {"part": Part.parse(part), "processes": workers})


def _prepare(data: str, overrides: list[str], out: Path, short_side: int | None, options: dict[str, Any]) -> None:
    from hdc_keras.data.datasets import read_dataset
    from hdc_keras.data.preparing import prepare as prepare_videos
    from hdc_keras.data.shards import is_prepared
    from hdc_keras.errors import ConfigError

    from .console import console, progress_bar, start_backend
    from .experiments import resolve

    if ":/" in out.as_posix():  # a URL, of which a path keeps one slash
        raise ConfigError(f"--out {out}: shards are written to a local or mounted folder; copy them from there.")
    if is_prepared(data):
        raise ConfigError(f"--data {data}: is prepared already; train on it with `hdc-keras pretrain --data {data}`.")
    config = resolve("videos", None, data, overrides, smoke=False).data
    records, notes = read_dataset(config)
    console.print("".join(f"{note}\n" for note in notes), end="", markup=False, highlight=False)
    start_backend()
    with progress_bar() as bar:
        task = bar.add_task("preparing videos", total=None, note="")

        def show(done: int, total: int, failed: int) -> None:
            bar.update(task, completed=done, total=total, note=f"{failed} failed" if failed else "")

        report = prepare_videos(records, out, size=short_side or config.decode_size, **options, progress=show)
    _say(report, out)


def _say(report: dict[str, Any], out: Path) -> None:
    from .console import console

    for failure in report["failed"][:_FAILURES_SHOWN]:
        console.print(f"{failure['path']}: {failure['cause']}", style="red", markup=False, soft_wrap=True)
    if len(report["failed"]) > _FAILURES_SHOWN:
        console.print(f"and {len(report['failed']) - _FAILURES_SHOWN} more; {out / 'report.json'} has all", style="red")
    console.print(
        f"{report['videos_read']} of {report['videos_asked']} videos are prepared, {report['videos_failed']} failed, "
        f"{report['videos_to_come']} to come: {report['frames']:,} frames, {report['bytes'] / 1e9:.2f} GB, "
        f"{report['shards']} of {report['shards_in_all']} shards, in {out}",
        soft_wrap=True,
    )
    if report["shards"] < report["shards_in_all"]:
        console.print("The other parts are still to be made.")
    elif report["videos_read"]:
        console.print(f"Next: hdc-keras pretrain --data {out}", soft_wrap=True)
    if not report["videos_read"] and report["videos_failed"]:
        raise typer.Exit(1)


def _verify(out: Path) -> int:
    from hdc_keras.data.preparing import verify
    from hdc_keras.data.shards import is_prepared
    from hdc_keras.errors import DataError

    from .console import console, progress_bar

    if not is_prepared(out):
        raise DataError(f"{out}: holds no prepared set (there is no prepared.json).")
    with progress_bar() as bar:
        task = bar.add_task("reading shards back", total=None, note="")
        problems = verify(out, lambda done, total: bar.update(task, completed=done, total=total))
    for problem in problems:
        console.print(problem, style="red", markup=False, soft_wrap=True)
    console.print(f"{len(problems)} problem(s)" if problems else "[green]All shards are as they were written.[/]")
    return 1 if problems else 0
