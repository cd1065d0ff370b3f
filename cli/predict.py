"""`hdc-keras predict`."""

from pathlib import Path
from typing import Annotated

import typer

_FAILURES_SHOWN, _CLASSES_SHOWN = 20, 20


def predict(
    context: typer.Context,
    model: Annotated[Path, typer.Option(help="Folder of a classifier that `hdc-keras finetune` made.")],
    data: Annotated[str, typer.Option(help="Videos: a video file, a folder, a manifest, tar files or a prepared set.")],
    out: Annotated[Path, typer.Option(help="File to write, .csv or .parquet.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes in a row, the most likely first.")] = 5,
    sliding: Annotated[
        str | None,
        typer.Option(help="Classify parts of this length, as in 2s or 1m: when something happens in a long video."),
    ] = None,
    part: Annotated[
        str,
        typer.Option(help="I/N: score only the I-th of N parts and write no file. Run without --part afterwards."),
    ] = "1/1",
    on: Annotated[
        str,
        typer.Option(
            help="Where to work: here; ray, the Ray cluster of this machine, or a new one; or the address of a Ray "
            "cluster, HOST:PORT or ray://HOST:PORT. All its nodes must share --model, --data and the folder of --out."
        ),
    ] = "here",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a config key, as in evaluate.clips=5. Repeatable."),
    ] = None,
) -> None:
    """Name what happens in videos: the most likely classes of each, with scores.

    The file has a row for each video: video_id, file, class_1, score_1, class_2, ... The scores of all classes add up
    to 1. With --sliding there is a row for each part of a video, with its start and end in seconds.

    After an interruption, run the same command again to resume. With --on, the machines of a Ray cluster share the
    work (see docs/machines.md). Videos that cannot be decoded are printed, and listed in a CSV file next to the other
    one.

    Examples:
      hdc-keras predict --model models/strokes --data videos --out named.csv
      hdc-keras predict --model models/strokes --data match.mp4 --sliding 2s \\
        --out when.csv
      hdc-keras predict --model models/strokes --data videos.csv \\
        --out named.parquet --top 1
      hdc-keras predict --model models/strokes --data videos --out named.csv \\
        --on 10.0.0.1:6379
    """
    from hdc_keras.classification.directory import ClassifierDirectory
    from hdc_keras.config import load_experiment
    from hdc_keras.data.from_experiment import load_undivided_videos
    from hdc_keras.data.preparing import Part
    from hdc_keras.data.records import counted
    from hdc_keras.engines import engine_on
    from hdc_keras.errors import ConfigError, RunError
    from hdc_keras.files import require_creatable

    from .console import console, errors, print_failures, print_notes, print_parts, progress_bar, start_backend
    from .experiments import other_videos
    from .time_spans import seconds_of

    share = Part.parse(part)
    seconds = None if sliding is None else seconds_of("--sliding", sliding)
    if out.suffix.lower() not in (".csv", ".parquet") or ":/" in out.as_posix():
        raise ConfigError(f"--out {out}: expected a local file ending in .csv or .parquet.")
    try:
        require_creatable(out)
    except OSError as error:
        raise RunError(f"--out {out} cannot be written ({error.strerror or error}). Choose another.") from error
    directory = ClassifierDirectory(model)
    directory.facts()
    experiment = load_experiment(directory.config_file, set_, literals=other_videos(data))
    directory.require_settings_of(experiment)
    if out.exists():
        raise RunError(f"--out {out} exists and is not overwritten. Choose another file.")
    records, notes = load_undivided_videos(experiment)
    print_notes(notes)
    # Before the backend, which then leaves the GPUs to the workers of a cluster.
    engine = context.with_resource(engine_on(on))
    start_backend()
    from hdc_keras.classification.prediction import check_free, clip_seconds, failures_file
    from hdc_keras.classification.prediction import predict as predict_videos

    check_free(out)
    if seconds and (lengths := clip_seconds(records, experiment.data)):
        frame, clip = lengths
        if seconds < frame:
            raise ConfigError(f"--sliding {sliding}: a part would be shorter than a frame, which is {frame:.2g} s.")
        if seconds < clip:
            errors.print(
                f"Parts of {sliding} are shorter than the clips of {clip:.2g} s that the network was made for: their "
                "frames are repeated, and scores mean less.",
                style="yellow",
                soft_wrap=True,
            )
    with progress_bar() as bar:
        task = bar.add_task("classifying", total=None, note="")
        done = predict_videos(
            directory,
            experiment,
            records,
            out,
            top=top,
            sliding=seconds,
            part=share,
            progress=lambda count, total: bar.update(task, completed=count, total=total),
            engine=engine,
        )
    if done is None:
        console.print(f"Part {part} is scored. Once all parts are, run the command without --part to write {out}.")
        return
    print_failures([f"{failure['file']}: {failure['cause']}" for failure in done.failed], _FAILURES_SHOWN)
    if done.failed:
        console.print(f"{failures_file(out)} lists every failure.", style="red", soft_wrap=True)
    counts = sorted(done.first.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {count}" for name, count in counts[:_CLASSES_SHOWN])
    console.print(f"Most likely: {shown}" + (" ..." if len(counts) > _CLASSES_SHOWN else ""), soft_wrap=True)
    names = ("part of a video", "parts of videos") if sliding else ("video", "videos")
    rows = counted(range(done.rows), *names)
    print_parts(f"Classified {rows}, {len(done.failed)} failed: ", (str(out), "bold"), soft_wrap=True)
