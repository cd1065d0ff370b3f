"""`hdc-keras doctor`."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

_SPLITS = ("train", "val", "test")
_CLASSES_SHOWN = 12
_FILES_SHOWN = 5


def doctor(
    data: Annotated[str | None, typer.Option(help="Videos to look through: a folder or a manifest.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as in data.layout=ucf101. Repeatable.")
    ] = None,
) -> None:
    """Say what this machine has, and what a set of videos holds.

    Every video's packets are counted and its first and middle frame decoded: damage elsewhere is not seen. The exit
    code is 1 where a video cannot be decoded.

    Examples:
      hdc-keras doctor
      hdc-keras doctor --data path/to/videos
      hdc-keras doctor --data path/to/UCF-101 --set data.official_split=2
    """
    from .console import console, start_backend

    start_backend()
    console.print(_machine())
    if data:
        _look_through(data, set_ or [])


def _machine() -> Any:
    import os
    import platform
    import shutil

    import av
    import keras
    from rich.table import Table

    from hdc_keras import __version__
    from hdc_keras.data.synthetic import cache_folder
    from hdc_keras.devices import list_devices, uses_xla

    table = Table(title="this machine", show_header=False, title_justify="left")
    table.add_row("hdc-keras", f"{__version__}, Python {platform.python_version()}, Keras {keras.__version__}")
    backend = keras.backend.backend()
    table.add_row("backend", f"{backend} {_version(backend)}; XLA is {'on' if uses_xla('auto') else 'off'} by default")
    table.add_row("devices", ", ".join(list_devices()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    table.add_row("processor", f"{len(os.sched_getaffinity(0))} cores, {memory / 1e9:.0f} GB of memory")
    for name, folder in (("here", Path.cwd()), ("cache", cache_folder())):
        known = next(place for place in (folder, *folder.parents) if place.exists())
        table.add_row(f"disk, {name}", f"{shutil.disk_usage(known).free / 1e9:.0f} GB free ({folder})")
    table.add_row("decoder", f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}")
    tensorflow = _version("tensorflow")
    table.add_row("reading", f"tf.data of TensorFlow {tensorflow}" if tensorflow else "threads (no TensorFlow)")
    return table


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _look_through(data: str, overrides: list[str]) -> None:
    from hdc_keras.data.from_experiment import load_videos
    from hdc_keras.data.inspection import inspect_videos

    from .console import console, progress_bar
    from .experiments import resolve

    experiment = resolve("videos", None, data, overrides, smoke=False)
    records, notes = load_videos(experiment)
    with progress_bar() as bar:
        task = bar.add_task("looking through videos", total=len(records), note="")
        facts = inspect_videos(records, lambda done, _: bar.update(task, completed=done))
    bad = [found for found in facts if found.problem]
    good = [found for found in facts if not found.problem]
    console.print(_counts(records))
    if good:
        console.print(_spreads(good))
        console.print(_summary(good, experiment.data.frames, experiment.data.stride))
    console.print("".join(f"{note}\n" for note in notes), end="", markup=False, highlight=False)
    for found in bad[:_FILES_SHOWN]:
        console.print(f"{found.record.path}: {found.problem}", style="red", markup=False, soft_wrap=True)
    if len(bad) > _FILES_SHOWN:
        console.print(f"and {len(bad) - _FILES_SHOWN} more", style="red")
    console.print(f"{len(good)} of {len(facts)} videos can be decoded", style="red" if bad else "green")
    if bad:
        raise typer.Exit(1)


def _counts(records: Any) -> Any:
    """Videos by class and split."""
    from rich.table import Table

    counts = Counter((record.label or "unlabelled", record.split) for record in records)
    labels = sorted({label for label, _ in counts}, key=lambda label: -sum(counts[label, s] for s in _SPLITS))
    groups = len({record.group for record in records if record.group})
    title = f"{len(records)} videos" + (f" in {groups} groups" if groups else "")
    table = Table("class", title=title, title_justify="left")
    for split in _SPLITS:
        table.add_column(split, justify="right")
    for label in labels[:_CLASSES_SHOWN]:
        table.add_row(label, *(str(counts[label, split]) for split in _SPLITS))
    if len(labels) > _CLASSES_SHOWN:
        others = labels[_CLASSES_SHOWN:]
        sums = (sum(counts[label, split] for label in others) for split in _SPLITS)
        table.add_row(f"{len(others)} others", *map(str, sums))
    table.add_section()
    table.add_row("all", *(str(sum(counts[label, split] for label in labels)) for split in _SPLITS))
    return table


def _spreads(facts: Any) -> Any:
    """Least, median and greatest of what the files are."""
    from rich.table import Table

    from hdc_keras.data.inspection import spread

    table = Table("", "least", "median", "greatest", title="files that decode", title_justify="left")
    rows = {
        "frames": ([found.frames for found in facts], "{:.0f}"),
        "seconds": ([found.seconds for found in facts], "{:.1f}"),
        "frames a second": ([found.rate for found in facts], "{:.2f}"),
        "height": ([found.size[0] for found in facts], "{:.0f}"),
        "width": ([found.size[1] for found in facts], "{:.0f}"),
    }
    for name, (values, form) in rows.items():
        table.add_row(name, *(form.format(value) for value in spread(values)))
    return table


def _summary(facts: Any, frames: int, stride: int) -> str:
    codecs = Counter(found.codec for found in facts)
    short = sum(found.frames <= (frames - 1) * stride for found in facts)
    return (
        f"{sum(found.seconds for found in facts) / 60:.1f} minutes; "
        + ", ".join(f"{count} {codec}" for codec, count in codecs.most_common())
        + f"; {short} shorter than a clip of {frames} frames with stride {stride} (looped)"
    )
