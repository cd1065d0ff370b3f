"""`hdc-keras`: parse, call the library, print, exit. Commands import it when they run, so that help is fast."""

import os
import sys

import typer

from hdc_keras.errors import HDCError, StoppedError

from .compare import compare
from .configs import configs_app
from .console import errors
from .doctor import doctor
from .embed import embed
from .evaluate import evaluate
from .export import export
from .prepare import prepare
from .pretrain import pretrain
from .report import report

app = typer.Typer(
    help="Pretrain a video backbone on unlabelled videos, measure what it learned, hand it on.\n\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage or config, 130 or 143 stopped by a signal.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(prepare)
app.command()(pretrain)
app.command()(evaluate)
app.command()(compare)
app.command()(report)
app.command()(embed)
app.command()(export)
app.command()(doctor)
app.add_typer(configs_app, name="configs")


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from hdc_keras import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; errors that the library explains are printed without a traceback."""
    # TensorFlow greets with a page of notices at import; warnings and errors stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app()
    except StoppedError as error:
        errors.print(escaped(str(error)), highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except HDCError as error:
        errors.print(f"[bold red]Error:[/] {escaped(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("Stopped.")
        sys.exit(130)


def escaped(text: str) -> str:
    """Text as rich prints it unchanged."""
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
