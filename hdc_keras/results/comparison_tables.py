"""A comparison as Markdown, CSV or JSON."""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hdc_keras.errors import ConfigError
from hdc_keras.results.comparison import DRAWS, Comparison, Difference
from hdc_keras.results.published import CAVEATS, PublishedFigure

SUFFIXES = (".md", ".csv", ".json")
# Number of text columns, which say what a row is about. The columns after them hold figures.
WORDS = 5
_WHOLE_NETWORK = ("features", "fine-tuned")
_LEVEL = re.compile(r"P\d+")


def check_suffix(file: Path) -> None:
    """Check that the suffix of a file name is supported.

    Raises:
        ConfigError: the suffix is not in `SUFFIXES`.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {file}: the file name must end in one of {', '.join(SUFFIXES)}.")


def render_comparison(comparison: Comparison, published: Sequence[PublishedFigure], suffix: str) -> str:
    """Render a comparison as the text of a file.

    Args:
        comparison: the comparison.
        published: published figures to add. They are left out of a CSV file, which holds only one table.
        suffix: the format, one of `SUFFIXES`.
    """
    if suffix == ".json":
        return _json(comparison, published)
    return _csv(comparison) if suffix == ".csv" else _markdown(comparison, published)


def percent(share: float | None) -> str:
    """Format a share in per cent with one decimal; a dash for `None`."""
    return "–" if share is None else f"{100 * share:.1f}"


def points(difference: Difference | None) -> str:
    """Format a difference in percentage points, with its interval if it has one, and a star if that excludes 0."""
    if difference is None:
        return "–"
    value = f"{100 * difference.value:+.1f}"
    if difference.interval is None:
        return value
    low, high = (f"{100 * bound:+.1f}" for bound in difference.interval)
    return f"{value} [{low}, {high}]{' *' if difference.excludes_zero else ''}"


def headers(comparison: Comparison) -> list[str]:
    """Column titles of the table of a comparison."""
    first, *others = comparison.runs
    return ["protocol", "data set", "label", "from", "metric", first, *others, *(f"{run} − {first}" for run in others)]


def cells(comparison: Comparison) -> list[list[str]]:
    """Cells of the table, row by row, in the order of `headers`."""
    return [
        [
            f"{row.protocol} v{row.version}",
            Path(row.dataset).stem,
            row.column,
            row.source,
            row.metric,
            *map(percent, row.values),
            *map(points, row.differences),
        ]
        for row in comparison.rows
    ]


def main_rows(comparison: Comparison) -> Comparison:
    """Keep the rows of the whole network, and of the level that is best for the first run by the first metric.

    The protocol `factors` keeps all its rows, because it is about every level and task.
    """
    metric: dict[tuple[str, ...], str] = {}
    best: dict[tuple[str, ...], tuple[float, str]] = {}
    for row in comparison.rows:
        of = (row.protocol, row.dataset, row.column)
        if row.metric == metric.setdefault(of, row.metric) and _LEVEL.fullmatch(row.source):
            best[of] = max(best.get(of, (-1.0, "")), (row.values[0] or 0.0, row.source))
    rows = [
        row
        for row in comparison.rows
        if row.protocol == "factors"
        or row.source in _WHOLE_NETWORK
        or row.source == best.get((row.protocol, row.dataset, row.column), (0.0, ""))[1]
    ]
    return replace(comparison, rows=tuple(rows))


def explanation() -> str:
    """A note that explains the figures to a reader."""
    return (
        "Per cent of the test videos; differences in percentage points. Brackets hold the 95 % interval of a paired "
        f"bootstrap over test videos ({DRAWS:,} draws); a star marks intervals that exclude 0. The interval reflects "
        "the choice of test videos, not the variation between pretraining runs."
    )


@dataclass(frozen=True)
class PublishedTable:
    """Published figures of one task.

    Attributes:
        title: title of the table.
        headers: column titles.
        rows: cells; the last cell of a row is the number of its source.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def published_tables(published: Sequence[PublishedFigure]) -> tuple[list[PublishedTable], list[str]]:
    """Make a table of published figures for each task, and a list of their sources, numbered from 1."""
    sources = list(dict.fromkeys(figure.source for figure in published))
    tables = []
    for task in dict.fromkeys(figure.task for figure in published):
        found: dict[tuple[str, ...], dict[str, float]] = {}
        for figure in published:
            if figure.task == task:
                name = f"{figure.method} ({figure.note})" if figure.note else figure.method
                number = f"[{sources.index(figure.source) + 1}]"
                by_metric = found.setdefault((name, figure.pretrained_on, figure.network, number), {})
                by_metric[f"{figure.dataset} {figure.metric}"] = figure.percent
        metrics = list(dict.fromkeys(metric for by_metric in found.values() for metric in by_metric))
        rows = [
            (*key[:3], *(f"{by_metric[m]:.1f}" if m in by_metric else "" for m in metrics), key[3])
            for key, by_metric in found.items()
        ]
        tables.append(
            PublishedTable(
                f"Published: {task}", ("method", "pretrained on", "network", *metrics, "source"), tuple(rows)
            )
        )
    return tables, [f"[{number}] {source}" for number, source in enumerate(sources, 1)]


def _markdown(comparison: Comparison, published: Sequence[PublishedFigure]) -> str:
    lines = [f"# {' and '.join(comparison.runs)}", "", explanation(), ""]
    titles = headers(comparison)
    lines += _table(titles, cells(comparison), ["---"] * WORDS + ["---:"] * (len(titles) - WORDS))
    if comparison.notes:
        lines += ["", *(f"- {_markdown_text(note)}" for note in comparison.notes)]
    if published:
        tables, sources = published_tables(published)
        for table in tables:
            figures = len(table.headers) - 4
            lines += ["", f"## {table.title}", ""]
            lines += _table(table.headers, table.rows, ["---"] * 3 + ["---:"] * figures + ["---"])
        lines += ["", *(f"- {text}" for text in (*CAVEATS, *sources))]
    return "\n".join(lines) + "\n"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], rules: Sequence[str]) -> list[str]:
    return [
        f"| {' | '.join(_markdown_text(cell) for cell in row)} |" if row is not rules else f"| {' | '.join(rules)} |"
        for row in (titles, rules, *rows)
    ]


def _markdown_text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _csv(comparison: Comparison) -> str:
    """One line for each metric and run. Shares are in [0, 1], not in per cent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["protocol", "version", "dataset", "column", "source", "metric"]
    writer.writerow([*names, "run", "value", "difference", "low", "high", "videos"])
    for row in comparison.rows:
        for run, value, difference in zip(comparison.runs, row.values, (None, *row.differences), strict=True):
            bounds = difference.interval or ("", "") if difference else ("", "")
            difference_cells = [difference.value, *bounds, difference.videos] if difference else ["", *bounds, ""]
            shown = "" if value is None else value
            writer.writerow([*(getattr(row, name) for name in names), run, shown, *difference_cells])
    return text.getvalue()


def _json(comparison: Comparison, published: Sequence[PublishedFigure]) -> str:
    content = {"draws": DRAWS, "first": comparison.runs[0], **asdict(comparison)}
    if published:
        content |= {"published": [asdict(figure) for figure in published], "published_caveats": CAVEATS}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
