"""Tables of evaluation results, and the headline numbers at the top of the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hdc_keras.results.outcomes import MAIN_SOURCES
from hdc_keras.results.store import PRETRAINED, SavedResult

_TITLES = {
    "linear": "Linear probe",
    "knn": "k nearest neighbours",
    "retrieval": "Retrieval",
    "lowlabel": "Few labels",
    "factors": "Decoupling meter",
}
_VARIANTS = {"linear": "Linear probe", "retrieval": "Retrieval", "finetune": "Fine-tuning"}
_ORDER = ("finetune", "linear", "lowlabel", "knn", "retrieval", "factors")
# Settings that a protocol selects. Results list them among the metrics.
_NOT_METRICS = ("l2",)


@dataclass(frozen=True)
class Score:
    """One metric of one source, for the pretrained network and the networks to compare it with.

    All values are fractions in [0, 1], or `None`.

    Attributes:
        metric: name of the metric.
        value: the metric of the pretrained network.
        deviation: standard deviation of `value` over seeds and splits.
        random: the metric of the same network with random weights.
        random_deviation: standard deviation of `random`.
        supervised: the metric of the network with torchvision's Kinetics weights.
    """

    metric: str
    value: float
    deviation: float | None
    random: float | None
    random_deviation: float | None
    supervised: float | None


@dataclass(frozen=True)
class SourceRow:
    """All metrics of one source (the features that were evaluated), the main metric first."""

    source: str
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class ColumnTable:
    """All sources for one label column."""

    column: str
    chance: float | None
    rows: tuple[SourceRow, ...]

    def row(self, source: str) -> SourceRow | None:
        """The row of a source, or `None`."""
        return next((row for row in self.rows if row.source == source), None)


@dataclass(frozen=True)
class ResultTable:
    """The result of one protocol on one data set.

    Attributes:
        key: id of its element on the page.
        title: the protocol in words.
        values: the whole saved result.
        facts: (name, text) of each fact that the scores depend on.
        reduced: (setting, published value, value used) for each setting that differs from the published protocol.
        tables: one for each label column.
        metrics: names of the metrics, the main one first.
        sources: names of the sources, in the order of the result.
        main_source: the source that represents the whole network; empty if there is none.
        has_supervised: whether a supervised network was evaluated too.
    """

    key: str
    title: str
    values: Mapping[str, Any]
    facts: tuple[tuple[str, str], ...]
    reduced: tuple[tuple[str, str, str], ...]
    tables: tuple[ColumnTable, ...]
    metrics: tuple[str, ...]
    sources: tuple[str, ...]
    main_source: str
    has_supervised: bool

    @property
    def main_metric(self) -> str:
        """The metric to show where there is room for one."""
        return self.metrics[0]


@dataclass(frozen=True)
class Headline:
    """One score to show at the top of the page, and where it comes from."""

    table: ResultTable
    of_column: ColumnTable
    score: Score


def protocol_title(protocol: str) -> str:
    """A protocol's name in words."""
    if protocol in _TITLES:
        return _TITLES[protocol]
    kind, _, variant = protocol.partition("-")
    return f"{_VARIANTS[kind]} as in {variant.upper()}" if kind in _VARIANTS and variant else protocol


def protocol_rank(protocol: str) -> int:
    """Sort key of a protocol. Protocols that are commonly used to compare networks come first."""
    kind = protocol.partition("-")[0]
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def result_tables(results: Sequence[SavedResult]) -> list[ResultTable]:
    """One table for each result, in the same order."""
    return [_result_table(number, result) for number, result in enumerate(results)]


def headline(tables: Sequence[ResultTable], limit: int = 6) -> list[Headline]:
    """The main score of each protocol and label column, in the order of the tables."""
    found = []
    for table in tables:
        for of_column in table.tables:
            row = of_column.row(table.main_source)
            if row and table.values["protocol"] != "factors":  # It repeats the scores of the linear probe.
                found.append(Headline(table, of_column, row.scores[0]))
    return found[:limit]


def _result_table(number: int, result: SavedResult) -> ResultTable:
    values = result.values
    columns = values[PRETRAINED]
    metrics = dict.fromkeys(name for sources in columns.values() for scores in sources.values() for name in scores)
    sources = tuple(dict.fromkeys(source for of_column in columns.values() for source in of_column))
    return ResultTable(
        f"result-{number}",
        protocol_title(result.protocol),
        values,
        (("File", f"results/{result.name}.json"), *_facts(values)),
        tuple(
            (setting, _text(published), _text(used))
            for setting, (published, used) in (values.get("reduced") or {}).items()
        ),
        tuple(_column_table(values, column) for column in columns),
        tuple(name for name in metrics if name not in _NOT_METRICS),
        sources,
        next((source for source in MAIN_SOURCES if source in sources), ""),
        bool(values.get("supervised")),
    )


def _column_table(values: Mapping[str, Any], column: str) -> ColumnTable:
    rows = tuple(
        SourceRow(source, tuple(_score(values, column, source, name) for name in metrics if name not in _NOT_METRICS))
        for source, metrics in values[PRETRAINED][column].items()
    )
    return ColumnTable(column, (values.get("chance") or {}).get(column), rows)


def _score(values: Mapping[str, Any], column: str, source: str, metric: str) -> Score:
    deviation = values.get("deviation") or {}

    def find(tree: Mapping[str, Any], network: str) -> float | None:
        return ((tree.get(network) or {}).get(column) or {}).get(source, {}).get(metric)

    return Score(
        metric,
        values[PRETRAINED][column][source][metric],
        find(deviation, PRETRAINED),
        find(values, "random_weights"),
        find(deviation, "random_weights"),
        find(values, "supervised"),
    )


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    split, counts = values.get("split") or {}, values.get("counts") or {}
    facts = [
        ("Data set", values["dataset"]),
        ("Videos", f"{split.get('train', 0):,} for training, {split.get('test', 0):,} for testing"),
        ("Splits", ", ".join(map(str, values.get("splits") or []))),
        ("Views per video", values.get("views") or ""),
        ("Seeds", ", ".join(map(str, values.get("seeds") or []))),
        ("Checkpoint", f"{values.get('checkpoint', '')} ({str(values.get('weights_sha256', ''))[:12]})"),
        ("Architecture", values.get("architecture") or ""),
    ]
    if counts:
        facts.append(
            ("Decoded", f"{counts['decoded']:,} of {counts['asked']:,} videos, {len(counts['failed'])} failed")
        )
    for column, classes in (values.get("untrained_classes") or {}).items():
        named = ", ".join(f"{label} ({count} test videos)" for label, count in classes.items())
        facts.append((f"Classes of {column} without training videos", named))
    facts += [(name.replace("_", " "), _text(value)) for name, value in (values.get("settings") or {}).items()]
    facts.append(("Source", values.get("source") or ""))
    return [(name, text) for name, text in facts if text]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
