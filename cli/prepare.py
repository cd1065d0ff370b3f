"""`hdc-keras prepare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

_FAILURES_SHOWN = 20


def prepare(
    out: Annotated[str, typer.Option(help="Folder for the shards, or its URL in an object store.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Videos: a folder or its URL, a manifest, tar files, or a data set as published (UCF101, ...)."
        ),
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(min=16, help="Keep each video's aspect ratio, with the short side at most this many pixels."),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=95, help="JPEG quality.")] = 90,
    fps: Annotated[
        float | None, typer.Option(min=0.1, help="Frames per second to keep.", show_default="every frame")
    ] = None,
    videos_per_shard: Annotated[int, typer.Option(min=1, help="Videos per shard.")] = 64,
    part: Annotated[
        str, typer.Option(help="I/N: write only the I-th of N parts of the shards, to share the work among N machines.")
    ] = "1/1",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Videos decoded in parallel.", show_default="one per core, of all nodes with --on"),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            help="Where to work: here; ray, the Ray cluster of this machine, or a new one; or the address of a Ray "
            "cluster, HOST:PORT or ray://HOST:PORT. All its nodes must share --out and --data."
        ),
    ] = "here",
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds to decode one video; a slower one fails.")] = 600,
    verify: Annotated[
        bool, typer.Option("--verify", help="Prepare nothing: read the shards in --out and check them.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a config key, as in data.layout=ucf101. Repeatable."),
    ] = None,
) -> None:
    """Decode videos once into TFRecord shards, which train several times faster than video files.

    Frames are stored as JPEG in the size that training reads (`data.decode_size`), which is fastest. With --short-side
    they keep their aspect ratio and are resized when they are read.

    After an interruption, run the same command again to resume. Several processes may run the same command at once,
    also on machines that share a disk. With --on, the machines of a Ray cluster share the work (see docs/machines.md).
    Videos that cannot be decoded are listed with the reason in `report.json`. With --verify, the exit code is 1 if a
    shard is damaged or missing.

    Examples:
      hdc-keras prepare --data path/to/videos --out prepared
      hdc-keras pretrain --data prepared
      hdc-keras prepare --data s3://bucket/videos --out s3://bucket/prepared
      hdc-keras pretrain --data s3://bucket/prepared
      hdc-keras prepare --data path/to/videos --out prepared --part 1/4
      hdc-keras prepare --data kinetics --out prepared \\
        --part $((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT
      hdc-keras prepare --data path/to/videos --out prepared --on 10.0.0.1:6379
      hdc-keras prepare --out prepared --verify
    """
    from hdc_keras.data.preparing import Part
    from hdc_keras.errors import ConfigError

    if verify:
        raise typer.Exit(_verify(out))
    if data is None:
        raise ConfigError("--data: expected the videos to prepare. To check the shards in --out, use --verify.")
    options = {
        "quality": quality,
        "fps": fps,
        "videos_per_shard": videos_per_shard,
        "part": Part.parse(part),
        "processes": workers,
        "time_limit": time_limit,
    }
    raise typer.Exit(_prepare(data, set_ or [], out, short_side, on, options))


def _prepare(
    data: str, overrides: list[str], out: str, short_side: int | None, on: str, options: dict[str, Any]
) -> int:
    """Prepare the videos, print the outcome, and return the exit code."""
    from hdc_keras.data.datasets import read_dataset
    from hdc_keras.data.preparing import prepare as prepare_videos
    from hdc_keras.data.shards import is_prepared
    from hdc_keras.engines import HERE, engine_on
    from hdc_keras.errors import ConfigError

    from .console import print_notes, progress_bar, start_backend
    from .experiments import absolute, resolve

    place = _place(out)
    if is_prepared(data):
        raise ConfigError(f"--data {data}: already prepared. Train on it with `hdc-keras pretrain --data {data}`.")
    if place == absolute(data).rstrip("/"):
        raise ConfigError(f"--out {out}: expected another folder than --data, for shards only.")
    config = resolve("videos", None, data, overrides, smoke=False).data
    records, notes = read_dataset(config)
    print_notes(notes)
    if on == HERE:
        start_backend()  # so that its notices do not disturb the progress bar
    with engine_on(on) as engine, progress_bar() as bar:
        task = bar.add_task("preparing videos", total=None, note="")

        def show(done: int, total: int, failed: int) -> None:
            bar.update(task, completed=done, total=total, note=f"{failed} failed" if failed else "")

        report = prepare_videos(
            records,
            out,
            size=short_side or config.decode_size,
            **options,
            progress=show,
            engine=engine,
        )
    return _print_outcome(report, out)


def _place(out: str) -> str:
    """The absolute path of `--out`, or its URL. Raises `ConfigError` if a set cannot be prepared there."""
    from hdc_keras.data.remote import is_remote
    from hdc_keras.data.storage import writable_problem
    from hdc_keras.errors import ConfigError

    problem = writable_problem(out)
    if problem:
        raise ConfigError(f"--out {out}: {problem}.")
    return out.rstrip("/") if is_remote(out) else str(Path(out).resolve())


def _print_outcome(report: dict[str, Any], out: str) -> int:
    """Print what was prepared, and return the exit code: 1 if every video failed."""
    from .console import console, print_failures

    print_failures([f"{failure['path']}: {failure['cause']}" for failure in report["failed"]], _FAILURES_SHOWN)
    if report["failed"]:
        console.print(f"{out}/report.json lists every failure.", style="red", soft_wrap=True)
    console.print(
        f"Prepared {report['videos_read']} of {report['videos_asked']} videos, {report['videos_failed']} failed, "
        f"{report['videos_to_come']} remaining: {report['frames']:,} frames, {report['bytes'] / 1e9:.2f} GB, "
        f"{report['shards']} of {report['shards_in_all']} shards, in {out}",
        soft_wrap=True,
    )
    if report["shards"] < report["shards_in_all"]:
        console.print("The other parts still have to be prepared.")
    elif report["videos_read"]:
        console.print(f"Next: hdc-keras pretrain --data {out}", soft_wrap=True)
    return 1 if report["videos_failed"] and not report["videos_read"] else 0


def _verify(out: str) -> int:
    """Check the shards, print every problem, and return the exit code."""
    from hdc_keras.data.preparing import verify
    from hdc_keras.data.remote import is_remote
    from hdc_keras.data.shards import is_prepared
    from hdc_keras.errors import DataError

    from .console import console, progress_bar

    if not is_remote(out) and not is_prepared(out):
        raise DataError(f"{out}: not a prepared set (there is no prepared.json).")
    with progress_bar() as bar:
        task = bar.add_task("checking shards", total=None, note="")
        problems = verify(out, lambda done, total: bar.update(task, completed=done, total=total))
    for problem in problems:
        console.print(problem, style="red", soft_wrap=True)
    if problems:
        console.print(f"{len(problems)} problem(s)")
    else:
        console.print("All shards are intact.", style="green")
    return 1 if problems else 0
