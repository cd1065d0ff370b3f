"""`hdc-keras doctor`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hdc_keras.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from hdc_keras.config import Experiment
    from hdc_keras.data.inspection import VideoFacts
    from hdc_keras.data.records import VideoRecord

_CLASSES_SHOWN = 12
_FILES_SHOWN = 5


def doctor(
    data: Annotated[
        str | None, typer.Option(help="Videos to check: a folder, a manifest, tar files or a prepared set.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a config key, as in data.layout=ucf101. Repeatable."),
    ] = None,
    failures: Annotated[
        Path | None, typer.Option(help="CSV file to write, with the videos that cannot be decoded and the causes.")
    ] = None,
) -> None:
    """Describe this machine, and check a set of videos.

    With --data, count the frames of every video and decode the first and the middle one. Damage elsewhere in a file
    goes unnoticed. The exit code is 1 if a video cannot be decoded. The length of a clip is that of the config that
    `pretrain` chooses for your videos on this machine.

    Examples:
      hdc-keras doctor
      hdc-keras doctor --data path/to/videos
      hdc-keras doctor --data path/to/UCF-101 --set data.official_split=2
      hdc-keras doctor --data path/to/videos --failures failures.csv
    """
    from .console import console, start_backend

    if data is not None:
        _check_options(data, failures)
    elif set_ or failures:
        raise ConfigError("--set and --failures are about the videos of --data. Add --data.")
    start_backend()
    console.print(_machine())
    if data is not None:
        raise typer.Exit(_check_videos(data, set_ or [], failures))


def _check_options(data: str, failures: Path | None) -> None:
    """Find out what is wrong before all videos are read."""
    from hdc_keras.data.records import read_videos
    from hdc_keras.data.remote import is_remote
    from hdc_keras.files import require_writable

    from .experiments import absolute

    if not is_remote(data) and not Path(absolute(data)).exists():
        read_videos(data)  # says what was expected, and which name is close
    if failures is None:
        return
    if failures.exists():
        raise ConfigError(f"--failures {failures}: already exists. Choose another file.")
    try:
        require_writable(failures.parent)
    except OSError as error:
        raise ConfigError(f"--failures {failures}: cannot be written ({error.strerror or error}).") from error


def _machine() -> "Table":
    import platform
    import shutil

    import av
    import keras
    from rich.table import Table

    from hdc_keras import __version__
    from hdc_keras.data.synthetic import cache_folder
    from hdc_keras.devices import list_devices, total_memory, usable_cores, uses_xla

    table = Table(title="This machine", show_header=False, title_justify="left")
    table.add_row("hdc-keras", f"{__version__}, Python {platform.python_version()}, Keras {keras.__version__}")
    backend = keras.backend.backend()
    table.add_row("backend", f"{backend} {_version(backend)}, XLA {'on' if uses_xla('auto') else 'off'} by default")
    table.add_row("devices", ", ".join(list_devices()))
    memory = total_memory()
    in_gb = f", {memory / 1e9:.0f} GB of memory" if memory else ""
    table.add_row("processor", f"{usable_cores()} cores{in_gb}")
    for name, folder in (("working folder", Path.cwd()), ("cache", cache_folder())):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        table.add_row(name, f"{shutil.disk_usage(existing).free / 1e9:.0f} GB free on disk ({folder})")
    table.add_row("decoder", f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}")
    tensorflow = _version("tensorflow")
    table.add_row("data loading", f"tf.data, TensorFlow {tensorflow}" if tensorflow else "threads (no TensorFlow)")
    return table


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _check_videos(data: str, overrides: list[str], failures: Path | None) -> int:
    """Check the videos of a set, print a summary, and return the exit code."""
    from hdc_keras.data.from_experiment import load_videos
    from hdc_keras.data.inspection import inspect_videos

    from .console import console, print_failures, print_notes, progress_bar
    from .experiments import resolve
    from .pretrain import config_for_videos

    experiment = resolve(config_for_videos(), None, data, overrides, smoke=False)
    records, notes = load_videos(experiment)
    with progress_bar() as bar:
        task = bar.add_task("checking videos", total=len(records), note="")
        facts = inspect_videos(records, lambda done, _: bar.update(task, completed=done))
    damaged = [video for video in facts if video.problem]
    decodable = [video for video in facts if not video.problem]
    console.print(_counts(records))
    if decodable:
        console.print(_spreads(decodable))
        console.print(_summary(decodable, experiment))
    print_notes(notes)
    print_failures([f"{video.record.path}: {video.problem}" for video in damaged], _FILES_SHOWN)
    if failures:
        _write_failures(failures, damaged)
        console.print(f"{failures} lists {len(damaged)} video(s) that cannot be decoded.", soft_wrap=True)
    elif len(damaged) > _FILES_SHOWN:
        console.print("To list all of them, with their ids: --failures FILE.csv")
    console.print(f"{len(decodable)} of {len(facts)} videos can be decoded", style="red" if damaged else "green")
    return 1 if damaged else 0


def _write_failures(file: Path, damaged: Sequence["VideoFacts"]) -> None:
    import csv
    import io

    from hdc_keras.errors import RunError
    from hdc_keras.files import write_text

    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["video_id", "file", "cause"])
    writer.writerows([video.record.video_id, video.record.path, video.problem] for video in damaged)
    try:
        write_text(file, table.getvalue())
    except OSError as error:
        raise RunError(f"--failures {file}: cannot be written ({error.strerror or error}).") from error


def _counts(records: Sequence["VideoRecord"]) -> "Table":
    """Number of videos by class and split."""
    from rich.table import Table

    from hdc_keras.data.records import SPLITS

    counts = Counter((record.label or "unlabelled", record.split) for record in records)
    totals = Counter(record.label or "unlabelled" for record in records)
    labels = [label for label, _ in totals.most_common()]
    groups = len({record.group for record in records if record.group})
    title = f"{len(records)} videos" + (f" in {groups} groups" if groups else "")
    table = Table("class", title=title, title_justify="left")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for label in labels[:_CLASSES_SHOWN]:
        table.add_row(label, *(str(counts[label, split]) for split in SPLITS))
    others = labels[_CLASSES_SHOWN:]
    if others:
        sums = (sum(counts[label, split] for label in others) for split in SPLITS)
        table.add_row(f"{len(others)} other classes", *map(str, sums))
    table.add_section()
    table.add_row("total", *(str(sum(counts[label, split] for label in labels)) for split in SPLITS))
    return table


def _spreads(facts: Sequence["VideoFacts"]) -> "Table":
    """Minimum, median and maximum of each property of the videos."""
    from rich.table import Table

    from hdc_keras.data.inspection import spread

    table = Table("", "minimum", "median", "maximum", title="Decodable videos", title_justify="left")
    rows: dict[str, tuple[list[float], str]] = {
        "frames": ([video.frames for video in facts], "{:.0f}"),
        "seconds": ([video.seconds for video in facts], "{:.1f}"),
        "frames per second": ([video.rate for video in facts], "{:.2f}"),
        "height": ([video.size[0] for video in facts], "{:.0f}"),
        "width": ([video.size[1] for video in facts], "{:.0f}"),
    }
    for name, (values, form) in rows.items():
        table.add_row(name, *(form.format(value) for value in spread(values)))
    return table


def _summary(facts: Sequence["VideoFacts"], experiment: "Experiment") -> str:
    frames, stride = experiment.data.frames, experiment.data.stride
    codecs = Counter(video.codec for video in facts)
    fps = experiment.data.fps
    counts = [video.seconds * fps if fps else video.frames for video in facts]
    short = sum(count <= (frames - 1) * stride for count in counts)
    return (
        f"{sum(video.seconds for video in facts) / 60:.1f} minutes; "
        + ", ".join(f"{count} {codec}" for codec, count in codecs.most_common())
        + f"; {short} shorter than a clip of {frames} frames with stride {stride}"
        + (f" at {fps:g} frames per second" if fps else "")
        + f" (looped), as in the config {experiment.name}"
    )
