"""Turns docstrings into help pages."""

import inspect
from collections.abc import Callable
from typing import Any

from rich.markup import escape


def help_text(command: Callable[..., Any]) -> str:
    """A command's docstring as Typer prints it: prose that fits the terminal, examples line by line.

    Typer keeps every line break after the first paragraph and reads square brackets as markup. So the lines of a
    paragraph are joined unless one of them is indented, and brackets are escaped.
    """
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return escape("\n\n".join(_joined(paragraph.splitlines()) for paragraph in paragraphs))


def _joined(lines: list[str]) -> str:
    is_prose = not any(line.startswith(" ") for line in lines)
    return (" " if is_prose else "\n").join(lines)
