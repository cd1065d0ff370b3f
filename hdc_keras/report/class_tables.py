"""Which classes are recognised, and which are taken for which: from the judgements video by video."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hdc_keras.report.result_tables import protocol_title
from hdc_keras.results.store import PRETRAINED, JudgedVideo, SavedResult

# Up to so many classes the matrix is a table with numbers; with more, a picture.
_MOST_IN_A_TABLE = 20
_PAIRS_NAMED = 8
_SHADES = 8


@dataclass(frozen=True)
class ClassShare:
    """How often one class is recognised.

    Attributes:
        label: the class.
        videos: its test videos.
        share: of its judgements that were right.
        random: the same with random weights; `None` where that was not judged.
    """

    label: str
    videos: int
    share: float
    random: float | None


@dataclass(frozen=True)
class ClassPanel:
    """One protocol and label column.

    Attributes:
        title: which.
        classes: in alphabetical order.
        matrix: (classes, classes) counts, rows the true class; empty where there are too many for a table.
        shades: path by opacity from 1 to `_SHADES`, each an SVG path in units of a class; where there is no table.
        shares: of each class, the best first.
        confusions: true class, class it was taken for, how often; the most frequent first.
    """

    title: str
    classes: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]
    shades: dict[int, str]
    shares: tuple[ClassShare, ...]
    confusions: tuple[tuple[str, str, int], ...]


def class_panels(results: Sequence[SavedResult]) -> list[ClassPanel]:
    """A panel for each result and label column that has judgements video by video, counted over seeds and splits."""
    panels = []
    for result in results:
        for column in result.values[PRETRAINED]:
            judged = [video for video in result.judged(PRETRAINED, column) if video.predicted]
            if judged:
                untrained = [video for video in result.judged("random_weights", column) if video.predicted]
                title = f"{protocol_title(result.protocol)}, {column}"
                panels.append(_panel(title, judged, untrained))
    return panels


def _panel(title: str, judged: Sequence[JudgedVideo], untrained: Sequence[JudgedVideo]) -> ClassPanel:
    classes = tuple(sorted({video.label for video in judged} | {video.predicted for video in judged}))
    counts = Counter((video.label, video.predicted) for video in judged)
    of_class = Counter(video.label for video in judged)
    videos = Counter(label for label, _ in {(video.label, video.video_id) for video in judged})
    untrained_of_class = Counter(video.label for video in untrained)
    untrained_right = Counter(video.label for video in untrained if video.is_right)
    shares = [
        ClassShare(
            label,
            videos[label],
            counts[label, label] / of_class[label],
            untrained_right[label] / untrained_of_class[label] if untrained_of_class[label] else None,
        )
        for label in classes
        if of_class[label]
    ]
    wrong = [(label, predicted, n) for (label, predicted), n in counts.items() if label != predicted]
    small = len(classes) <= _MOST_IN_A_TABLE
    return ClassPanel(
        title,
        classes,
        tuple(tuple(counts[label, other] for other in classes) for label in classes) if small else (),
        {} if small else _shades(classes, counts, of_class),
        tuple(sorted(shares, key=lambda share: (-share.share, share.label))),
        tuple(sorted(wrong, key=lambda pair: (-pair[2], pair[:2]))[:_PAIRS_NAMED]),
    )


def _shades(classes: Sequence[str], counts: Counter[tuple[str, str]], of_class: Counter[str]) -> dict[int, str]:
    """Cells of the matrix, gathered by how dark they are: a hundred classes would be ten thousand elements."""
    place = {label: number for number, label in enumerate(classes)}
    shades: dict[int, list[str]] = {}
    for (label, predicted), count in sorted(counts.items()):
        shade = max(1, round(_SHADES * count / of_class[label]))
        shades.setdefault(shade, []).append(f"M{place[predicted]} {place[label]}h1v1h-1z")
    return {shade: "".join(cells) for shade, cells in sorted(shades.items())}
