"""The command `hdc-keras`. Each command imports the library only when it runs, which keeps `--help` fast."""

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

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
from .finetune import finetune
from .help_text import help_text
from .hub import pull, push
from .predict import predict
from .prepare import prepare
from .pretrain import pretrain
from .report import report
from .search import search

_RESUMES = "Finished parts are kept. Run the same command again to resume."
# What Ctrl-C leaves behind, by command.
_INTERRUPTED = {
    "prepare": _RESUMES,
    "evaluate": _RESUMES,
    "embed": _RESUMES,
    "finetune": _RESUMES,
    "predict": _RESUMES,
    "report": "The report was not written.",
    "search": "Nothing was written.",
    "export": "The export was not finished.",
}


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which says after Ctrl-C what is kept and ends with exit code 130."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except KeyboardInterrupt:
            # `prepare --verify` writes nothing.
            kept = "" if options.get("verify") else _INTERRUPTED.get(command.__name__, "")
            errors.print(f"Stopped. {kept}".rstrip(), soft_wrap=True)
            raise typer.Exit(130) from None

    return run


app = typer.Typer(
    help="Pretrain a video backbone on unlabelled videos, measure what it learned, and export it.\n\n"
    "Exit codes: 0 success, 1 failure, 2 wrong usage or configuration, 130 or 143 stopped by Ctrl-C or SIGTERM.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    prepare,
    pretrain,
    evaluate,
    compare,
    report,
    embed,
    search,
    finetune,
    predict,
    export,
    push,
    pull,
    doctor,
):
    app.command(help=help_text(command))(_interruptible(command))
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

    `_interruptible` ends Ctrl-C with exit code 130, and Typer does so in `configs`. While a network trains, Ctrl-C is a
    `StoppedError`.
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
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        message = f" {error.filename}: this name is too long for the file system."
        errors.print(Text.assemble(("Error:", "bold red"), message), soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
