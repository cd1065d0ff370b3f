"""`hdc-keras report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Option(help="Run directory of a pretraining run.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write.", show_default="RUN/report.html")] = None,
) -> None:
    """Write everything known about a run to one HTML file.

    The report shows the learning curves, the results, the confusion matrices, retrieved videos, a map of the
    embeddings, the views, the cost of the run and its config. It is a single file that needs no network connection,
    so you can send or print it. For each missing part it names the command that adds it.

    Examples:
      hdc-keras report --run runs/moving-shapes
      hdc-keras report --run runs/mine --out report.html
    """
    from hdc_keras.errors import ConfigError, RunError
    from hdc_keras.files import require_creatable
    from hdc_keras.results.store import read_results
    from hdc_keras.runs.directory import RunDirectory

    from .console import NamedBars, print_parts, progress_bar, start_backend

    directory = RunDirectory(run)
    directory.experiment()
    file = out or run / "report.html"
    if file.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {file}: expected a file that ends in .html.")

    try:
        require_creatable(file)
    except OSError as error:
        raise RunError(f"{file} cannot be written ({error.strerror or error}). Choose another with --out.") from error
    read_results(directory.path)

    start_backend()
    from hdc_keras.files import write_requested
    from hdc_keras.report.job import build_report

    with progress_bar() as bar:
        page = build_report(directory, NamedBars(bar)).encode()
    write_requested(file, page)
    print_parts("Wrote ", (str(file), "bold"), f", {len(page) / 1e6:.1f} MB")
