"""Results by protocol, as the template shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hdc_keras.results.store import PRETRAINED, SavedResult

# The source that stands for a whole network, by preference.
MAIN_SOURCES = ("fine-tuned", "features")
_TITLES = {
    "linear": "Linear probe",
    "knn": "k nearest neighbours",
    "retrieval": "Retrieval",
    "lowlabel": "Few labels",
    "factors": "Decoupling meter",
}
_VARIANTS = {"linear": "Linear probe", "finetune": "Fine-tuning"}
_ORDER = ("finetune", "linear", "lowlabel", "knn", "retrieval", "factors")
_NO_SCORE = ("l2",)


@dataclass(frozen=True)
class Figure:
    """One metric of one source, beside what it is to be judged by. All are shares in [0, 1], or `None`.

    Attributes:
        metric: its name.
        value: the pretrained network's.
        deviation: standard deviation over seeds and splits.
        random: the same network's with random weights.
        random_deviation: of `random`.
        supervised: torchvision's Kinetics weights'.
    """

    metric: str
    value: float
    deviation: float | None
    random: float | None
    random_deviation: float | None
    supervised: float | None


@dataclass(frozen=True)
class SourceRow:
    """All metrics of one source; the first is the main one."""

    source: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class ColumnTable:
    """All sources for one label column."""

    column: str
    chance: float | None
    rows: tuple[SourceRow, ...]

    def row(self, source: str) -> SourceRow | None:
        """What was read from one source."""
        return next((row for row in self.rows if row.source == source), None)


@dataclass(frozen=True)
class ResultTable:
    """One protocol on one data set.

    Attributes:
        key: of the page's anchors.
        title: in words.
        values: the whole result.
        facts: name and text of all that the figures depend on.
        reduced: name, the protocol's own value and the value used, of all that was made smaller.
        tables: one for each label column.
        metrics: names of the metrics, the main one first.
        sources: names of the sources, in the order of the result.
        main_source: the one that stands for the whole network; empty where there is none.
        has_supervised: whether there is a supervised network to compare with.
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
        """The first metric, which stands for the others."""
        return self.metrics[0]


@dataclass(frozen=True)
class Headline:
    """One figure to begin with, and where it is from."""

    table: ResultTable
    of_column: ColumnTable
    figure: Figure


def protocol_title(protocol: str) -> str:
    """A protocol's name in words."""
    if protocol in _TITLES:
        return _TITLES[protocol]
    kind, _, variant = protocol.partition("-")
    return f"{_VARIANTS[kind]} as in {variant.upper()}" if kind in _VARIANTS and variant else protocol


def protocol_rank(protocol: str) -> int:
    """Where a protocol comes: those first that say most of a network."""
    kind = protocol.partition("-")[0]
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def result_tables(results: Sequence[SavedResult]) -> list[ResultTable]:
    """One table a result, in the order of the results."""
    return [_result_table(number, result) for number, result in enumerate(results)]


def headline(tables: Sequence[ResultTable], most: int = 6) -> list[Headline]:
    """The main figure of each protocol and label column, in the order of the tables."""
    found = []
    for table in tables:
        for of_column in table.tables:
            row = of_column.row(table.main_source)
            if row and table.values["protocol"] != "factors":  # those are the linear probe's once more
                found.append(Headline(table, of_column, row.figures[0]))
    return found[:most]


def _result_table(number: int, result: SavedResult) -> ResultTable:
    values = result.values
    judged = values[PRETRAINED]
    names = dict.fromkeys(metric for sources in judged.values() for metrics in sources.values() for metric in metrics)
    sources = tuple(dict.fromkeys(source for of_column in judged.values() for source in of_column))
    return ResultTable(
        f"result-{number}",
        protocol_title(result.protocol),
        values,
        tuple(_facts(values)),
        tuple((name, _text(own), _text(used)) for name, (own, used) in (values.get("reduced") or {}).items()),
        tuple(_column_table(values, column) for column in judged),
        tuple(name for name in names if name not in _NO_SCORE),
        sources,
        next((source for source in MAIN_SOURCES if source in sources), ""),
        bool(values.get("supervised")),
    )


def _column_table(values: Mapping[str, Any], column: str) -> ColumnTable:
    rows = tuple(
        SourceRow(source, tuple(_figure(values, column, source, name) for name in metrics if name not in _NO_SCORE))
        for source, metrics in values[PRETRAINED][column].items()
    )
    return ColumnTable(column, (values.get("chance") or {}).get(column), rows)


def _figure(values: Mapping[str, Any], column: str, source: str, metric: str) -> Figure:
    deviation = values.get("deviation") or {}

    def of(tree: Mapping[str, Any], network: str) -> float | None:
        return ((tree.get(network) or {}).get(column) or {}).get(source, {}).get(metric)

    return Figure(
        metric,
        values[PRETRAINED][column][source][metric],
        of(deviation, PRETRAINED),
        of(values, "random_weights"),
        of(deviation, "random_weights"),
        of(values, "supervised"),
    )


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    split, counts = values.get("split") or {}, values.get("counts") or {}
    facts = [
        ("Data set", values["dataset"]),
        ("Videos", f"{split.get('train', 0):,} for training the judge, {split.get('test', 0):,} judged"),
        ("Splits", ", ".join(map(str, values.get("splits") or []))),
        ("Views of a video", values.get("views") or ""),
        ("Seeds", ", ".join(map(str, values.get("seeds") or []))),
        ("Checkpoint", f"{values.get('checkpoint', '')} ({str(values.get('weights_sha256', ''))[:12]})"),
        ("Architecture", values.get("architecture") or ""),
    ]
    if counts:
        facts.append(
            ("Counts", f"{counts['decoded']:,} of {counts['asked']:,} videos decoded, {len(counts['failed'])} failed")
        )
    facts += [(name.replace("_", " "), _text(value)) for name, value in (values.get("settings") or {}).items()]
    facts.append(("Source", values.get("source") or ""))
    return [(name, text) for name, text in facts if text]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
