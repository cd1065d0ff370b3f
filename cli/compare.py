"""`hdc-keras compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; others are compared with the first.")],
    published: Annotated[
        bool, typer.Option("--published", help="Show published figures on UCF101 and HMDB51 as well.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write it too: FILE.md, FILE.csv (without published figures) or FILE.json.")
    ] = None,
) -> None:
    """Compare the results of runs, and say which differences are more than chance.

    Every difference to the first run comes with a 95 % interval from a paired bootstrap over the test videos that both
    were judged on. Results of other protocol versions, settings or data sets are named, not compared.

    Examples:
      hdc-keras compare runs/hdc runs/coupled
      hdc-keras compare runs/hdc runs/coupled runs/spatial --out comparison.md
      hdc-keras compare runs/hdc runs/coupled --published
    """
    from hdc_keras.files import write_requested
    from hdc_keras.results.comparison import compare_runs
    from hdc_keras.results.comparison_tables import check_suffix, explanation, render_comparison
    from hdc_keras.results.published import PUBLISHED

    from .console import console

    if out:
        check_suffix(out)
    comparison = compare_runs(runs)
    figures = PUBLISHED if published else ()
    if comparison.rows:
        console.print(_table(comparison))
        console.print(explanation(), style="dim")
    else:
        console.print("These runs share no result that can be compared.")
    for note in comparison.notes:
        console.print(note, markup=False, style="yellow")
    if published:
        _print_published(figures)
    if out:
        write_requested(out, render_comparison(comparison, figures, out.suffix.lower()).encode())
        console.print(f"Wrote [bold]{out}[/]")


def _table(comparison: Any) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from hdc_keras.results.comparison_tables import WORDS, cells, headers

    titles = headers(comparison)
    alike = len({row.dataset for row in comparison.rows}) == 1
    # One data set is named above the table: the terminal is narrow.
    words = [place for place in range(WORDS) if not (alike and titles[place] == "data set")]
    figures = range(WORDS, len(titles) - len(comparison.runs) + 1)
    title = f"Data set: {comparison.rows[0].dataset}" if alike else None
    table = Table(title=title and escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(titles):
        if place in words or place >= WORDS:
            table.add_column(escape(name), justify="right" if place >= WORDS else "left", overflow="fold")
    before: Sequence[str] = ()
    for row, texts in zip(comparison.rows, cells(comparison), strict=True):
        if before and texts[:3] != before[:3]:
            table.add_section()
        shown = [
            "" if place < WORDS - 1 and texts[: place + 1] == before[: place + 1] else texts[place] for place in words
        ]
        styled = [
            f"[{'green' if difference.value > 0 else 'red'}]{text}[/]"
            if difference is not None and difference.excludes_zero
            else text
            for difference, text in zip(row.differences, map(escape, texts[figures.stop :]), strict=True)
        ]
        table.add_row(*map(escape, (*shown, *(texts[place] for place in figures))), *styled)
        before = texts
    return table


def _print_published(figures: Sequence[Any]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from hdc_keras.results.comparison_tables import published_tables
    from hdc_keras.results.published import CAVEATS

    from .console import console

    tables, sources = published_tables(figures)
    for content in tables:
        table = Table(title=content.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for place, name in enumerate(content.headers):
            table.add_column(name, justify="right" if 3 <= place < len(content.headers) - 1 else "left")
        for row in content.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for text in (*sources, *CAVEATS):
        console.print(text, markup=False, style="dim")
