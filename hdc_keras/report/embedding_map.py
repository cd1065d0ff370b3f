"""A map of embeddings: test videos near each other where the network finds them alike (t-SNE)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import VideoFeatures, joined
from hdc_keras.model import HDC

# Extent of the map in the units of its SVG, and the margin in which no point lies.
WIDTH, HEIGHT, _MARGIN = 640, 460, 18
LEAST_VIDEOS = 8
_PERPLEXITY = 30
# As many marks as have a colour, or a shape, of their own; classes beyond them repeat in other pairs.
_COLOURS, _SHAPES = 8, 6


@dataclass(frozen=True)
class MapClass:
    """A class, and how it is marked.

    Attributes:
        label: the class.
        colour: number of its colour.
        shape: number of its shape.
        videos: how many of the map's videos are of it.
    """

    label: str
    colour: int
    shape: int
    videos: int


@dataclass(frozen=True)
class EmbeddingMap:
    """What the page needs to draw the map.

    Attributes:
        records: the videos, one for each point.
        places: (x, y) of each video in the SVG, by source.
        classes: by label column, in alphabetical order.
        class_of: number of each video's class, by label column.
    """

    records: tuple[VideoRecord, ...]
    places: dict[str, list[tuple[int, int]]]
    classes: dict[str, list[MapClass]]
    class_of: dict[str, list[int]]

    def as_json(self) -> dict[str, Any]:
        """What the page's script needs to move and to mark the points anew."""
        marks = {c: [[one.colour, one.shape] for one in classes] for c, classes in self.classes.items()}
        return {"places": self.places, "marks": marks, "classOf": self.class_of}


def features_of(
    model: HDC,
    records: Sequence[VideoRecord],
    every_record: Sequence[VideoRecord],
    experiment: Experiment,
    store: FrameStore,
    cache: FeatureStore,
    progress: Callable[[int, int], None] | None = None,
) -> VideoFeatures:
    """Features of some videos: those that the evaluation of the whole set has kept, or else made now, and kept.

    Args:
        model: the pretrained model.
        records: the videos wanted.
        every_record: the whole set.
        experiment: as the evaluation had it.
        store: decodes them.
        cache: the run's folder of features.
        progress: called with (videos done, videos in all).
    """
    encoder = ClipEncoder(model, experiment.data.decode_size, experiment.evaluate.crops)
    of_evaluation = cache.find(encoder, every_record, experiment)
    if of_evaluation:
        return of_evaluation.select(records)
    return extract_features(encoder, records, experiment, store, progress, cache)


def draw_map(
    features: VideoFeatures,
    levels: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    progress: Callable[[int, int], None],
) -> EmbeddingMap:
    """Lay out the videos by all levels' features, and by each task's embeddings: there the tasks should differ.

    Args:
        features: of the videos.
        levels: of the model.
        pairs: each (level, task) that has a head.
        progress: called with (maps done, maps in all).
    """
    sources = {"features": list(levels)}
    for level, task in pairs:
        sources.setdefault(f"{task} embeddings", []).append(f"{level}_{task}")
    places = {}
    for done, (source, names) in enumerate(sources.items(), 1):
        places[source] = to_page(place_videos(joined(features, features, names)[1]))
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


def place_videos(vectors: np.ndarray) -> np.ndarray:
    """t-SNE by cosine (van der Maaten and Hinton 2008), from a start that follows from the data, so that it repeats.

    Args:
        vectors: (videos, channels), at least `LEAST_VIDEOS` videos.

    Returns:
        (videos, 2) float32.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    # So few videos are placed faster by one thread than by several that wait for each other: ten times where others
    # use the processor too.
    with threadpool_limits(1):
        return TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=0).fit_transform(vectors)


def to_page(places: np.ndarray) -> list[tuple[int, int]]:
    """Places in the units of the SVG, as large as fits, in proportion."""
    low, high = places.min(axis=0), places.max(axis=0)
    room = np.array([WIDTH - 2 * _MARGIN, HEIGHT - 2 * _MARGIN])
    # Distances mean the same along both axes, so that both have one scale.
    scale = (room / np.maximum(high - low, 1e-9)).min()
    centred = (places - (low + high) / 2) * scale + np.array([WIDTH, HEIGHT]) / 2
    return [(int(x), int(y)) for x, y in centred.round()]
