"""Training curves from a run's `metrics.csv`: metrics by level and task, kNN accuracy and learning rate."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hdc_keras.report.charts import LineChart, Series, line_chart, thinned

# The metrics of one epoch by name.
Row = Mapping[str, float]

_LEVEL_COLUMN = re.compile(r"(P\d)_([a-z]+)_(loss|accuracy|invariance|weight|deviation)")
# (suffix of the column, title), in the order to show.
_LEVEL_CHARTS = (
    ("loss", "Loss by level and task"),
    ("invariance", "Measured invariance"),
    ("weight", "Weight of each level"),
    ("accuracy", "Contrastive accuracy"),
    ("deviation", "Deviation of the embeddings (0: all equal)"),
)
_MAX_TABLE_ROWS = 24


def read_rows(metrics: Sequence[Mapping[str, str]]) -> list[dict[str, float]]:
    """Convert the rows of `metrics.csv` to numbers; empty cells are left out."""
    return [{name: float(value) for name, value in row.items() if value not in ("", None)} for row in metrics]


def draw_curves(rows: Sequence[Row]) -> list[LineChart]:
    """Draw a chart for each metric by level and task, then kNN accuracy, total loss and learning rate.

    In every chart, colour shows the task and the dash pattern shows the level.

    Args:
        rows: metrics by epoch; at least one.
    """
    columns = _columns(rows)
    epochs = rows[0]["epoch"], rows[-1]["epoch"]
    charts = []
    for suffix, title in _LEVEL_CHARTS:
        found = [match for match in map(_LEVEL_COLUMN.fullmatch, columns) if match and match[3] == suffix]
        series = [Series(f"{m[1]} {m[2]}", f"task-{m[2]} level-{m[1]}", _points(rows, m[0])) for m in found]
        if series:
            charts.append(line_chart(title, series, epochs))
    knn = [
        Series(name.removeprefix("knn_"), f"line-{number % 4}", _points(rows, name))
        for number, name in enumerate(name for name in columns if name.startswith("knn_"))
    ]
    if knn:
        charts.append(line_chart("kNN top-1 accuracy", knn, epochs))
    for name, title in (("loss", "Total loss"), ("learning_rate", "Learning rate")):
        if name in columns:
            charts.append(line_chart(title, [Series(title.lower(), "line-0", _points(rows, name))], epochs))
    return charts


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """Names of the tasks that were trained."""
    found = [_LEVEL_COLUMN.fullmatch(name) for row in rows[:1] for name in row]
    return list(dict.fromkeys(match[2] for match in found if match))


def table_of(rows: Sequence[Row]) -> dict[str, Any]:
    """At most `_MAX_TABLE_ROWS` epochs as a table, for readers who cannot see the charts.

    Returns:
        `columns`: names; `rows`: cells as text; `all`: the number of all epochs.
    """
    columns = _columns(rows)
    indices = sorted({round(i * (len(rows) - 1) / (_MAX_TABLE_ROWS - 1)) for i in range(_MAX_TABLE_ROWS)})
    return {
        "columns": [name.replace("_", " ") for name in columns],
        "rows": [[f"{rows[i][name]:.4g}" if name in rows[i] else "" for name in columns] for i in indices],
        "all": len(rows),
    }


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    return thinned([(row["epoch"], row[name]) for row in rows if name in row])
