"""`hdc-keras pretrain`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from hdc_keras.config import Experiment
    from hdc_keras.data.records import VideoSet

DEFAULT_CONFIG = "moving-shapes"
# For your own videos. Both describe the same set: they differ in how videos are decoded and trained on.
CONFIG_FOR_ACCELERATORS, CONFIG_FOR_CPUS = "videos", "videos-cpu"
# A run of fewer steps says so before it starts (our choice).
ENOUGH_STEPS = 1000


def pretrain(
    config: Annotated[
        str | None,
        typer.Option(help="Name of a config (see `hdc-keras configs list`), or a YAML file.", show_default="see above"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="hdc, or an ablation: coupled, spatial, temporal, hdc-every-level, hdc-uniform, hdc-top-level."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Videos: a folder, class folders, a manifest, tar files, a data set as published or a prepared set "
            "(or its URL).",
            show_default="moving shapes",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a config key, as in train.epochs=50. Repeatable."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run directory to create.", show_default="runs/NAME, NAME from the config")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --run where it stopped, or start it if there is none. Other options are needed "
            "only to start it, and must describe the same run.",
        ),
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            help="Start a new run from the weights of this run or .keras file. Epochs, optimizer and schedule start "
            "from zero."
        ),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(
            help="Train for about this long, as in 30m or 1h30m: the length of the run is computed from the time of "
            "some steps on this machine, and written to its config.yaml as train.steps.",
            show_default="the length in the config",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Take two steps, print the memory use and the estimated time of the whole run, and write nothing.",
        ),
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Shrink the config to about a minute, to check that the whole pipeline works."),
    ] = False,
) -> None:
    """Pretrain a backbone on unlabelled videos.

    Without --data, train on moving shapes, a small video set that this command generates.

    Without --config, use `moving-shapes` for moving shapes, `videos` for your videos if there is a GPU or TPU, and
    `videos-cpu` for your videos on a CPU.

    A job that may be interrupted can always be started with the same line, with --run and --resume.

    Ctrl-C or SIGTERM finishes the current step, saves a checkpoint, and exits with 128 + the number of the signal.

    Examples:
      hdc-keras pretrain
      hdc-keras pretrain --data path/to/videos --run runs/mine
      hdc-keras pretrain --data path/to/videos --time-budget 30m
      hdc-keras pretrain --data s3://bucket/prepared --run runs/mine
      hdc-keras pretrain --config videos --data videos.csv \\
        --set train.epochs=100 --set train.batch_size=32
      hdc-keras pretrain --preset coupled
      hdc-keras pretrain --run runs/mine --resume
      hdc-keras pretrain --data path/to/videos --run runs/mine --resume
      hdc-keras pretrain --data path/to/videos --init-from runs/other
      hdc-keras pretrain --data path/to/videos --dry-run \\
        --set train.micro_batches=8
    """
    from hdc_keras.data.from_experiment import length_of
    from hdc_keras.errors import ConfigError
    from hdc_keras.runs.directory import RunDirectory
    from hdc_keras.training.cluster import is_multi_process

    from .console import console, print_parts, start_backend

    for option, value in (("--config", config), ("--preset", preset), ("--init-from", init_from)):
        if value is not None and not value.strip():
            raise ConfigError(f"{option}: received an empty text. Leave the option out for its default.")
    # Everything that can be refused without a backend is refused before one starts.
    request = Request(config, preset, data, set_ or [], smoke, init_from)
    budget = None if time_budget is None else budget_of(time_budget, request)
    if resume and (run is None or dry_run):
        raise ConfigError("--resume continues the run that --run names: it needs --run, and excludes --dry-run.")
    continues = resume and run is not None and RunDirectory(run).config_file.exists()
    if continues and run:
        experiment, videos = continued(run, request, keeps_length=budget is not None)
    else:
        experiment, videos = started(request, run, dry_run)
        if resume:
            print_parts("Run: ", (str(run), "bold"), " holds no run yet. It is started.")
    folder = run or Path("runs") / experiment.name
    steps = length_of(experiment, videos.records).steps
    if continues and RunDirectory(folder).checkpoints.newest_step() >= steps:
        print_parts("Run: ", (str(folder), "bold"), f" is finished after {steps:,} steps.")
        return
    if not dry_run and not is_multi_process():  # in a cluster, the other processes may see the lock of their chief
        RunDirectory(folder).require_idle()
    start_backend()
    from .pretrain_job import dry_run_job, fit_to_budget, run_job

    if budget is not None and continues:
        console.print(f"--time-budget: the run keeps its length of {steps:,} steps.", soft_wrap=True)
    elif budget is not None:
        if not dry_run:
            RunDirectory(folder).check_free()  # before some steps are taken in vain
        experiment = fit_to_budget(experiment, videos, budget)
        steps = length_of(experiment, videos.records).steps
    if steps < ENOUGH_STEPS and not smoke and not continues:
        console.print(
            f"This run takes only {steps:,} steps. So few may teach little, however many passes they are. "
            f"Train for longer with --set train.steps={2 * ENOUGH_STEPS}, or --time-budget 30m.",
            style="yellow",
            soft_wrap=True,
        )
    if dry_run:
        raise typer.Exit(dry_run_job(experiment, videos))
    raise typer.Exit(run_job(experiment, folder, continues, videos))


class Request(NamedTuple):
    """The options that say what to train. The names are those of the options."""

    config: str | None
    preset: str | None
    data: str | None
    overrides: list[str]
    smoke: bool
    init_from: str | None

    @property
    def depends_on_devices(self) -> bool:
        """Whether the default config depends on the devices of this machine."""
        return self.data is not None and not self.config

    def config_before_devices(self) -> str:
        """The config, where it does not depend on devices, or one that describes the same set of videos."""
        return self.config or (CONFIG_FOR_CPUS if self.data is not None else DEFAULT_CONFIG)

    def experiment(self, config: str, smoke: bool | None = None) -> "Experiment":
        """The experiment with this config. With `smoke`, shrunk or not whatever the option says."""
        from .experiments import resolve

        shrunk = self.smoke if smoke is None else smoke
        return resolve(config, self.preset, self.data, self.overrides, shrunk, self.init_from)


def continued(run: Path, request: Request, keeps_length: bool) -> "tuple[Experiment, VideoSet]":
    """The experiment and the videos of a run that `--resume` continues.

    Args:
        run: the run directory.
        request: the options, which need not say anything.
        keeps_length: whether the run has its number of steps from `--time-budget`, and not from the other options.

    Raises:
        ConfigError: the options describe another run.
    """
    from hdc_keras.errors import ConfigError
    from hdc_keras.runs.directory import RunDirectory
    from hdc_keras.runs.videos import require_same_course

    from .experiments import changes, read_videos

    experiment = RunDirectory(run).experiment()
    if any(value not in (None, [], False) for value in request):
        config = config_for_videos() if request.depends_on_devices else request.config_before_devices()
        kept = [f"train.steps={experiment.train.steps}"] if keeps_length and experiment.train.steps else []
        asked = request._replace(overrides=[*request.overrides, *kept]).experiment(config)
        if different := changes(experiment, asked):
            raise ConfigError(
                f"--resume: the options describe another run than the one in {run}: {', '.join(different)}. Give "
                "the options that it was started with, or none, or choose another folder with --run."
            )
    tell_data(experiment)
    videos = read_videos(experiment, run)
    require_same_course(run, experiment, videos.records)
    return experiment, videos


def started(request: Request, run: Path | None, dry_run: bool) -> "tuple[Experiment, VideoSet]":
    """The experiment and the videos of a new run in the folder `run`, or in the config's folder when `None`.

    Raises:
        ConfigError: the options are wrong.
        RunError: the folder is taken, or there is nothing at `--init-from`.
    """
    from hdc_keras.errors import RunError
    from hdc_keras.runs.directory import RunDirectory

    from .console import console, print_parts
    from .experiments import changes, read_videos

    config = request.config_before_devices()
    experiment = request.experiment(config)
    if request.init_from and not Path(request.init_from).exists():
        raise RunError(
            f"--init-from {request.init_from}: no such file or folder. Expected a run directory or a .keras file."
        )
    if (run or not request.depends_on_devices) and not dry_run:
        RunDirectory(run or Path("runs") / experiment.name).check_free()
    tell_data(experiment)
    videos = read_videos(experiment)
    if request.depends_on_devices:
        config = config_for_videos()
        experiment = request.experiment(config)
    if not request.config:
        print_parts("Config: ", (config, "bold"), " (the default; --config selects another)")
    if request.smoke:
        smaller = changes(request.experiment(config, smoke=False), experiment)
        console.print(f"Smoke: {', '.join(smaller)}. --set wins over these values.", soft_wrap=True)
    return experiment, videos


def tell_data(experiment: "Experiment") -> None:
    """Say so if an experiment has no videos of the user's own."""
    from .console import print_parts

    if experiment.data.path is None:
        print_parts("Data: ", ("moving shapes", "bold"), ", generated on this machine (--data selects your own videos)")


def budget_of(time_budget: str, request: Request) -> float:
    """Seconds of `--time-budget`.

    Raises:
        ConfigError: it is no length of time, another option gives the length of the run, or several processes share it.
    """
    from hdc_keras.errors import ConfigError
    from hdc_keras.training.cluster import is_multi_process

    from .time_spans import seconds_of

    seconds = seconds_of("--time-budget", time_budget)
    lengths = [text for text in request.overrides if text.startswith(("train.epochs=", "train.steps="))]
    other = "--smoke" if request.smoke else f"--set {lengths[0]}" if lengths else None
    if other:
        raise ConfigError(f"--time-budget and {other} both give the length of the run. Leave one of them out.")
    if is_multi_process():
        raise ConfigError(
            "--time-budget measures one process, but this run has several. Give its length with --set train.steps=..."
        )
    return seconds


def config_for_videos() -> str:
    """Name of the config that `pretrain` chooses for `--data` on this machine. Starts the backend."""
    from hdc_keras.errors import ConfigError
    from hdc_keras.training.cluster import is_multi_process

    from .console import start_backend

    start_backend()
    import keras

    from hdc_keras.devices import has_accelerator

    if keras.backend.backend() == "jax" and is_multi_process():
        raise ConfigError(
            "--config: name a config for several processes of JAX, such as --config videos. They must meet before one "
            "of them can look at its devices and choose."
        )
    return CONFIG_FOR_ACCELERATORS if has_accelerator() else CONFIG_FOR_CPUS
