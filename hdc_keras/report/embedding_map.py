"""The map of embeddings: t-SNE places test videos close together if the network finds them similar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hdc_keras.data.records import VideoRecord
from hdc_keras.features.video_features import VideoFeatures, joined

# Size of the map in SVG units, and of the margin without points.
WIDTH, HEIGHT, _MARGIN = 640, 460, 18
# Our choice.
MIN_VIDEOS = 8
_PERPLEXITY = 30
_LEAST_SPREAD = 1e-9
# Colours of the style sheet and shapes of `page.MARKS`. Further classes reuse them in other combinations.
_COLOURS, _SHAPES = 8, 6


@dataclass(frozen=True)
class MapClass:
    """A class and the mark of its points.

    Attributes:
        label: the class.
        colour: index of its colour.
        shape: index of its shape.
        videos: number of its videos on the map.
    """

    label: str
    colour: int
    shape: int
    videos: int


@dataclass(frozen=True)
class EmbeddingMap:
    """Everything the page needs to draw the map.

    Attributes:
        records: the videos, one for each point.
        places: (x, y) of each video in SVG units, for each kind of features and embeddings.
        classes: classes in alphabetical order, by label column.
        class_of: index of each video's class, by label column.
    """

    records: tuple[VideoRecord, ...]
    places: dict[str, list[tuple[int, int]]]
    classes: dict[str, list[MapClass]]
    class_of: dict[str, list[int]]

    def as_json(self) -> dict[str, Any]:
        """What the page's script needs to move points and change their marks."""
        marks = {column: [[one.colour, one.shape] for one in classes] for column, classes in self.classes.items()}
        return {"places": self.places, "marks": marks, "classOf": self.class_of}


def draw_map(
    features: VideoFeatures,
    levels: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    progress: Callable[[int, int], None],
) -> EmbeddingMap:
    """Place the videos once by the features of all levels, and once by each task's embeddings.

    Args:
        features: features of the videos to place.
        levels: the model's levels.
        pairs: each (level, task) that has a projection head.
        progress: called with (layouts done, total layouts).
    """
    sources = {"features": list(levels)}
    for level, task in pairs:
        sources.setdefault(f"{task} embeddings", []).append(f"{level}_{task}")
    places = {}
    for done, (source, names) in enumerate(sources.items(), 1):
        places[source] = fit_to_page(tsne(joined(features, features, names)[1]))
        progress(done, len(sources))
    columns = list(dict.fromkeys(column for record in features.records for column in record.labels))
    classes, class_of = {}, {}
    for column in columns:
        labels = [record.labels.get(column, "") for record in features.records]
        names = sorted(set(labels))
        classes[column] = [
            MapClass(label, i % _COLOURS, (i + i // _COLOURS) % _SHAPES, labels.count(label))
            for i, label in enumerate(names)
        ]
        class_of[column] = [names.index(label) for label in labels]
    return EmbeddingMap(tuple(features.records), places, classes, class_of)


def tsne(vectors: np.ndarray) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008) by cosine distance. It starts from a PCA, so that results are repeatable.

    Args:
        vectors: (videos, channels), with at least `MIN_VIDEOS` videos.

    Returns:
        (videos, 2) float32. All zero if all vectors are the same, as those of a collapsed network are, or some are
        non-finite: scikit-learn would divide by their deviation, and crash.
    """
    if not np.ptp(vectors, axis=0).max() > _LEAST_SPREAD:
        return np.zeros((len(vectors), 2), np.float32)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    # With this few videos, several threads mostly wait for each other: up to ten times slower on a busy CPU.
    with threadpool_limits(1):
        return TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=0).fit_transform(vectors)


def fit_to_page(places: np.ndarray) -> list[tuple[int, int]]:
    """Scale (videos, 2) positions to SVG units, as large as fits, with one scale for both axes."""
    low, high = places.min(axis=0), places.max(axis=0)
    available = np.array([WIDTH - 2 * _MARGIN, HEIGHT - 2 * _MARGIN])
    scale = (available / np.maximum(high - low, 1e-9)).min()
    centred = (places - (low + high) / 2) * scale + np.array([WIDTH, HEIGHT]) / 2
    return [(int(x), int(y)) for x, y in centred.round()]
