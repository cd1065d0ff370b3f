"""`hdc-keras compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from hdc_keras.results.comparison import Comparison
    from hdc_keras.results.published import PublishedFigure


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories. Each is compared with the first.", show_default=False)
    ],
    published: Annotated[
        bool, typer.Option("--published", help="Also show published figures on UCF101 and HMDB51.")
    ] = False,
    all_sources: Annotated[
        bool, typer.Option("--all", help="Print the rows of every level and embedding, not only the main ones.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write the comparison to FILE.md, FILE.csv (without published figures) or FILE.json."),
    ] = None,
) -> None:
    """Compare the results of several runs, with a confidence interval for every difference.

    Differences from the first run come with a 95 % confidence interval, from a paired bootstrap over the test videos
    that both runs were evaluated on. Results of different protocol versions, settings or data sets are listed but not
    compared.

    Examples:
      hdc-keras compare runs/hdc runs/coupled
      hdc-keras compare runs/hdc runs/coupled runs/spatial --out comparison.md
      hdc-keras compare runs/hdc runs/coupled --published
    """
    from hdc_keras.files import write_requested
    from hdc_keras.results.comparison import compare_runs
    from hdc_keras.results.comparison_tables import check_suffix, explanation, main_rows, render_comparison
    from hdc_keras.results.published import PUBLISHED

    from .console import console, print_parts

    if out:
        check_suffix(out)
    comparison = compare_runs(runs)
    figures = PUBLISHED if published else ()
    if comparison.rows:
        shown = comparison if all_sources else main_rows(comparison)
        console.print(_table(shown))
        if len(shown.rows) < len(comparison.rows):
            console.print(
                "Shown are features (all levels joined; the last level, if the publication uses only that) and the "
                f"best level of {comparison.runs[0]}. It is chosen by its own score on the test videos, so that score "
                "is optimistic; --all shows every source, and so does --out.",
                style="dim",
            )
        console.print(explanation(), style="dim")
    else:
        console.print("These runs have no comparable results.")
    for note in comparison.notes:
        console.print(note, style="yellow")
    if published:
        _print_published(figures)
    if out:
        write_requested(out, render_comparison(comparison, figures, out.suffix.lower()).encode())
        print_parts("Wrote ", (str(out), "bold"))


def _table(comparison: "Comparison") -> "Table":
    """A heading for each metric, and below it a row for each run, so that the width does not grow with the runs.

    Differences are coloured where the interval excludes zero.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from hdc_keras.results.comparison_tables import WORDS, cells, headers

    titles = headers(comparison)
    same_dataset = len({row.dataset for row in comparison.rows}) == 1
    # A common data set is named once, in the title.
    words = [column for column in range(WORDS) if not (same_dataset and titles[column] == "data set")]
    title = f"Data set: {comparison.rows[0].dataset}" if same_dataset else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("run", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column(f"difference to {comparison.runs[0]}", justify="right", overflow="fold", min_width=len("-12.3"))
    for row, texts in zip(comparison.rows, cells(comparison), strict=True):
        table.add_row(Text(", ".join(texts[column] for column in words), style="bold"), "", "")
        values, differences = texts[WORDS : WORDS + len(comparison.runs)], texts[WORDS + len(comparison.runs) :]
        for run, value, difference, text in zip(
            comparison.runs, values, (None, *row.differences), ("", *differences), strict=True
        ):
            is_certain = difference is not None and difference.excludes_zero
            style = ("green" if difference.value > 0 else "red") if difference and is_certain else ""
            table.add_row(f"  {run}", value, Text(text, style=style))
    return table


def _print_published(figures: Sequence["PublishedFigure"]) -> None:
    from rich import box
    from rich.table import Table

    from hdc_keras.results.comparison_tables import published_tables
    from hdc_keras.results.published import CAVEATS

    from .console import console

    tables, sources = published_tables(figures)
    for content in tables:
        table = Table(title=content.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        first, last = 3, len(content.headers) - 1  # method, pretraining set and network come first, the source last
        for column, name in enumerate(content.headers):
            table.add_column(name, justify="right" if first <= column < last else "left", overflow="fold")
        for row in content.rows:
            table.add_row(*row)
        console.print(table)
    for text in (*sources, *CAVEATS):
        console.print(text, style="dim")
