"""`hdc-keras pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CONFIG = "moving-shapes"


def pretrain(
    config: Annotated[
        str | None,
        typer.Option(help="Named config (see `hdc-keras configs list`) or YAML file.", show_default=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="hdc, or an ablation: coupled, spatial, temporal, hdc-uniform, hdc-top-level."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of videos, folder of class folders, or CSV manifest.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key of the config, as in train.epochs=50. Repeatable."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run directory to create. [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --run where it stopped.")] = False,
    init_from: Annotated[
        str | None,
        typer.Option(help="Start from the weights of this run or .keras file; all else begins anew."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Take one step, say what it costs and what the run would, and write nothing."),
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink the config to about a minute, to try the path.")
    ] = False,
) -> None:
    """Pretrain a backbone on unlabelled videos.

    Without --data it uses moving shapes, a small video set that it renders; without --config, `moving-shapes` for
    these, `videos` for your videos on a GPU, and `videos-cpu` for your videos on a CPU.

    Examples:
      hdc-keras pretrain
      hdc-keras pretrain --data path/to/videos --run runs/mine
      hdc-keras pretrain --config videos --data videos.csv --set train.epochs=100 --set train.batch_size=32
      hdc-keras pretrain --preset coupled
      hdc-keras pretrain --run runs/mine --resume
      hdc-keras pretrain --data path/to/videos --init-from runs/other
      hdc-keras pretrain --data path/to/videos --set train.micro_batches=8 --dry-run

    Ctrl-C or SIGTERM: the step is finished, a checkpoint is saved, and the exit code is 128 + the signal's number.
    """
    from hdc_keras.errors import ConfigError

    from .console import console, start_backend
    from .experiments import resolve

    if resume:
        if run is None or config or preset or data or set_ or smoke or init_from or dry_run:
            raise ConfigError(
                "--resume continues the run that --run names, with that run's own config: give it only --run."
            )
        from hdc_keras.runs.directory import RunDirectory

        directory = RunDirectory(run)
        experiment = directory.experiment()
    else:
        chosen = config or (_config_for_videos() if data else DEFAULT_CONFIG)
        start = [f"model.init_from={Path(init_from).resolve()}"] if init_from else []
        experiment = resolve(chosen, preset, data, [*start, *(set_ or [])], smoke)
        if not config:
            console.print(f"Config: [bold]{chosen}[/] (chosen because none was given)")
    if experiment.data.path is None:
        console.print("Data: [bold]moving shapes[/], rendered here (give your own videos with --data)")

    start_backend()
    from .pretrain_job import rehearse_job, run_job

    if dry_run:
        raise typer.Exit(rehearse_job(experiment))
    raise typer.Exit(run_job(experiment, run or Path("runs") / experiment.name, resume))


def _config_for_videos() -> str:
    from .console import start_backend

    start_backend()
    from hdc_keras.devices import has_accelerator

    return "videos" if has_accelerator() else "videos-cpu"
