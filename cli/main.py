"""The command `hdc-keras`. Each command imports the library only when it runs, which keeps `--help` fast."""

import os
import sys

import typer
from rich.text import Text

from hdc_keras.errors import HDCError, StoppedError

from .compare import compare
from .configs import configs_app
from .console import errors
from .doctor import doctor
from .embed import embed
from .evaluate import evaluate
from .export import export
from .help_text import help_text
from .prepare import prepare
from .pretrain import pretrain
from .report import report

app = typer.Typer(
    help="Pretrain a video backbone on unlabelled videos, measure what it learned, and export it.\n\n"
    "Exit codes: 0 success, 1 failure, 2 wrong usage or configuration, 130 or 143 stopped by Ctrl-C or SIGTERM.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (prepare, pretrain, evaluate, compare, report, embed, export, doctor):
    app.command(help=help_text(command))(command)
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
    """Run the command line. Errors that the library explains are printed without a traceback.

    Typer ends Ctrl-C with exit code 130; while a network trains, Ctrl-C is a `StoppedError`.
    """
    # Hides TensorFlow's start-up notices; its warnings and errors are still shown.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app()
    except StoppedError as error:
        errors.print(str(error), soft_wrap=True)
        sys.exit(error.exit_code)
    except HDCError as error:
        errors.print(Text.assemble(("Error:", "bold red"), f" {error}"), soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
