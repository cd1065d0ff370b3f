"""Evaluation results as a Markdown table, for model cards. No backend is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Facts = dict[str, Any]

# Settings that a protocol selects. Results list them among the metrics.
_NOT_METRICS = ("l2",)


def result_rows(result: Mapping[str, Any], weights_sha256: str | None) -> Iterator[Facts]:
    """A row for each label column and feature source of one result."""
    for column, sources in result["metrics"].items():
        for source, metrics in sources.items():
            random = result.get("random_weights", {}).get(column, {}).get(source, {})
            yield {
                "protocol": result["protocol"] + (" (differs from the publication)" if result.get("reduced") else ""),
                "dataset": Path(str(result["dataset"])).stem,
                "label": column,
                "from": source,
                "metrics": {name: value for name, value in metrics.items() if name not in _NOT_METRICS},
                "random_weights": {name: value for name, value in random.items() if name not in _NOT_METRICS},
                "deviation": result.get("deviation", {}).get("metrics", {}).get(column, {}).get(source, {}),
                "chance": result.get("chance", {}).get(column),
                "test_videos": result.get("split", {}).get("test"),
                "of_these_weights": result.get("weights_sha256") == weights_sha256,
            }


def results_table(results: Sequence[Facts]) -> str:
    """A table of the results of `result_rows`, with a sentence that explains it."""
    rows = [
        (
            row["protocol"],
            row["dataset"],
            row["label"],
            row["from"],
            _metrics_text(row["metrics"], row["deviation"]),
            _metrics_text(row["random_weights"], {}),
            "–" if row["chance"] is None else f"{row['chance']:.3f}",
            row["test_videos"] or "–",
            "yes" if row["of_these_weights"] else "no",
        )
        for row in results
    ]
    titles = (
        "protocol",
        "data set",
        "label",
        "features",
        "pretrained",
        "random weights",
        "chance",
        "test videos",
        "these weights",
    )
    introduction = (
        "Measured by `hdc-keras evaluate`, as fractions of the test videos, beside the same network with random "
        "weights and chance (always predicting the most frequent class). The last column says whether exactly these "
        "weights were evaluated."
    )
    return f"{introduction}\n\n" + markdown_table(titles, rows)


def _metrics_text(metrics: Mapping[str, float], deviation: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.3f}" + (f" ± {deviation[name]:.3f}" if name in deviation else "")
        for name, value in metrics.items()
    )


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
