"""What a run's `metrics.csv` shows: curves by level and task, and what the run cost."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hdc_keras.report.charts import LineChart, Series, line_chart, thinned

Row = Mapping[str, float]

_OF_LEVEL = re.compile(r"(P\d)_([a-z]+)_(loss|accuracy|invariance|weight)")
# In the order in which they are shown: suffix, title.
_BY_LEVEL = (
    ("loss", "Loss by level and task"),
    ("invariance", "Measured invariance"),
    ("weight", "Weight of each level"),
    ("accuracy", "Contrastive accuracy"),
)
_TABLE_ROWS = 24


def read_rows(metrics: Sequence[Mapping[str, str]]) -> list[dict[str, float]]:
    """The lines of `metrics.csv` as numbers; what is empty in a line is left out."""
    return [{name: float(value) for name, value in row.items() if value not in ("", None)} for row in metrics]


def draw_curves(rows: Sequence[Row]) -> list[LineChart]:
    """Losses, invariances, weights and accuracies by level and task; the whole loss, kNN and the learning rate.

    A task has its colour and a level its dashes, here and everywhere.

    Args:
        rows: of `read_rows`, at least one.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    epochs = rows[0]["epoch"], rows[-1]["epoch"]
    charts = []
    for suffix, title in _BY_LEVEL:
        found = [match for match in map(_OF_LEVEL.fullmatch, columns) if match and match[3] == suffix]
        series = [Series(f"{m[1]} {m[2]}", f"task-{m[2]} level-{m[1]}", _points(rows, m[0])) for m in found]
        if series:
            charts.append(line_chart(title, series, epochs))
    knn = [
        Series(name.removeprefix("knn_"), f"line-{number % 4}", _points(rows, name))
        for number, name in enumerate(name for name in columns if name.startswith("knn_"))
    ]
    if knn:
        charts.append(line_chart("kNN on held-out videos, top-1", knn, epochs))
    for name, title in (("loss", "Whole loss"), ("learning_rate", "Learning rate")):
        if name in columns:
            charts.append(line_chart(title, [Series(title.lower(), "line-0", _points(rows, name))], epochs))
    return charts


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """Names of the tasks that were trained."""
    found = [_OF_LEVEL.fullmatch(name) for row in rows[:1] for name in row]
    return list(dict.fromkeys(match[2] for match in found if match))


def table_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Some two dozen epochs in figures, for whoever cannot see the charts."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    places = sorted({round(i * (len(rows) - 1) / (_TABLE_ROWS - 1)) for i in range(_TABLE_ROWS)})
    return {
        "columns": [name.replace("_", " ") for name in columns],
        "rows": [[f"{rows[p][name]:.4g}" if name in rows[p] else "" for name in columns] for p in places],
        "all": len(rows),
    }


def training_cost(rows: Sequence[Row]) -> dict[str, str]:
    """Time, steps, clips a second and the share of waiting, as names and texts."""
    seconds = sum(row["seconds"] for row in rows)
    cost = {
        "Training time": duration(seconds),
        "Epochs": f"{len(rows):,}",
        "Steps": f"{rows[-1]['step']:,.0f}",
        "Clips a second": f"{statistics.median(row['clips_per_second'] for row in rows):,.0f} (median epoch)",
    }
    waits = [(row["data_wait_share"], row["seconds"]) for row in rows if "data_wait_share" in row]
    if waits:
        share = sum(part * time for part, time in waits) / sum(time for _, time in waits)
        cost["Waiting for data"] = f"{100 * share:.0f} % of the time"
    cost["Videos that failed"] = f"{rows[-1].get('videos_failed', 0):.0f}"
    return cost


def duration(seconds: float) -> str:
    """A time span as it is said."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    return thinned([(row["epoch"], row[name]) for row in rows if name in row])
