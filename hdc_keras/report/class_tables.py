"""Accuracy by class and the confusion matrix, from the predictions for each test video."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hdc_keras.report.result_tables import protocol_title
from hdc_keras.results.store import PRETRAINED, JudgedVideo, SavedResult

# A matrix with more classes is drawn as a picture instead of a table of numbers.
_MAX_TABLE_CLASSES = 20
_MAX_CONFUSIONS = 8
# Levels of opacity in the picture; the template divides by this number.
_SHADES = 8


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy on one class.

    Attributes:
        label: the class.
        videos: number of its test videos.
        share: fraction of its predictions that are right.
        random: the same fraction with random weights; `None` if random weights were not evaluated.
    """

    label: str
    videos: int
    share: float
    random: float | None


@dataclass(frozen=True)
class ClassPanel:
    """The classes of one label column, as predicted by one protocol.

    Attributes:
        title: protocol and label column.
        classes: in alphabetical order.
        matrix: (classes, classes) counts; rows are true classes. Empty if there are too many classes for a table.
        shades: for a picture: one SVG path for all cells of the same opacity, by opacity from 1 to `_SHADES`. A cell is
            one unit wide. Empty if there is a table.
        accuracies: one for each class, highest first.
        confusions: (true class, predicted class, count), most frequent first.
    """

    title: str
    classes: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]
    shades: dict[int, str]
    accuracies: tuple[ClassAccuracy, ...]
    confusions: tuple[tuple[str, str, int], ...]


def class_panels(results: Sequence[SavedResult]) -> list[ClassPanel]:
    """Make a panel for each result and label column with predictions per video, summed over seeds and splits."""
    panels = []
    for result in results:
        for column in result.values[PRETRAINED]:
            pretrained = [video for video in result.judged(PRETRAINED, column) if video.predicted]
            if pretrained:
                random = [video for video in result.judged("random_weights", column) if video.predicted]
                title = f"{protocol_title(result.protocol)}, {column}"
                panels.append(class_panel(title, pretrained, random))
    return panels


def class_panel(title: str, pretrained: Sequence[JudgedVideo], random: Sequence[JudgedVideo]) -> ClassPanel:
    """Make a panel.

    Args:
        title: its heading.
        pretrained: the predictions to show.
        random: those with random weights, to compare with; may be empty.
    """
    classes = tuple(sorted({video.label for video in pretrained} | {video.predicted for video in pretrained}))
    counts = Counter((video.label, video.predicted) for video in pretrained)
    of_class = Counter(video.label for video in pretrained)
    videos = Counter(label for label, _ in {(video.label, video.video_id) for video in pretrained})
    random_of_class = Counter(video.label for video in random)
    random_right = Counter(video.label for video in random if video.is_right)
    accuracies = [
        ClassAccuracy(
            label,
            videos[label],
            counts[label, label] / of_class[label],
            random_right[label] / random_of_class[label] if random_of_class[label] else None,
        )
        for label in classes
        if of_class[label]
    ]
    confusions = [(label, predicted, n) for (label, predicted), n in counts.items() if label != predicted]
    is_table = len(classes) <= _MAX_TABLE_CLASSES
    return ClassPanel(
        title,
        classes,
        tuple(tuple(counts[label, other] for other in classes) for label in classes) if is_table else (),
        {} if is_table else _shades(classes, counts, of_class),
        tuple(sorted(accuracies, key=lambda accuracy: (-accuracy.share, accuracy.label))),
        tuple(sorted(confusions, key=lambda confusion: (-confusion[2], confusion[:2]))[:_MAX_CONFUSIONS]),
    )


def _shades(classes: Sequence[str], counts: Counter[tuple[str, str]], of_class: Counter[str]) -> dict[int, str]:
    """Group the cells by opacity into one path each: with one per cell, 100 classes would take 10,000 elements."""
    index = {label: number for number, label in enumerate(classes)}
    shades: dict[int, list[str]] = {}
    for (label, predicted), count in sorted(counts.items()):
        shade = max(1, round(_SHADES * count / of_class[label]))
        shades.setdefault(shade, []).append(f"M{index[predicted]} {index[label]}h1v1h-1z")
    return {shade: "".join(cells) for shade, cells in sorted(shades.items())}
