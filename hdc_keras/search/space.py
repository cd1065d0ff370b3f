"""The videos of a table as vectors of unit length, in which near means alike."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import ConfigError
from hdc_keras.features.vector_table import VectorTable
from hdc_keras.features.video_features import Arrays

# The name for all tasks together, or for all vectors of a table that no HDC network wrote.
BOTH = "both"
_HEAD = re.compile(r"P\d+_(\w+)")
# Cosines computed at a time: 64 MB.
_BLOCK = 2**24


class Neighbours(NamedTuple):
    """The nearest videos of each query, nearest first.

    Attributes:
        rows: (queries, n) rows of the table; -1 where an index found fewer.
        cosines: (queries, n) float32 cosine similarity, in [-1, 1].
    """

    rows: np.ndarray
    cosines: np.ndarray


class SearchSpace:
    """Unit vectors of the videos of a table.

    A task's vector is made of the embeddings of all its levels, each scaled to unit length, so that each counts as
    much; for `BOTH`, of the vectors of all tasks. A table without such embeddings has one vector, of all its columns.

    Args:
        table: the table; `hdc-keras embed` writes it.
        by: a task of the table, such as "spatial" or "temporal"; or `BOTH`.

    Attributes:
        by: as given.
        records: the videos, in the order of the rows.
        vectors: (videos, channels) float32.

    Raises:
        ConfigError: the table has no such task.
    """

    def __init__(self, table: VectorTable, by: str):
        tasks = tasks_of(table)
        if by not in tasks:
            raise ConfigError(f"--by {by}: {table.file} can be searched by {', '.join(tasks)}.")
        self.by = by
        self.records: Sequence[VideoRecord] = table.records
        self._parts = tasks[by]
        self.vectors = self.vectors_of(table.arrays)

    def vectors_of(self, arrays: Arrays) -> np.ndarray:
        """The vectors of videos from their embeddings: (videos, channels) float32 of unit length."""
        parts = [_unit(np.concatenate([_unit(arrays[name]) for name in names], axis=1)) for names in self._parts]
        return _unit(np.concatenate(parts, axis=1))

    def nearest(self, queries: np.ndarray, count: int) -> Neighbours:
        """Compare queries with every video.

        Args:
            queries: (queries, channels) float32 of unit length.
            count: number of videos to find for each.
        """
        count = min(count, len(self.vectors))
        found = []
        for block in blocks(queries, len(self.vectors)):
            cosines = block @ self.vectors.T
            rows = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
            near = np.take_along_axis(cosines, rows, axis=1)
            order = np.lexsort((rows, -near), axis=1)  # among equals, the first row
            found.append((np.take_along_axis(rows, order, axis=1), np.take_along_axis(near, order, axis=1)))
        rows, cosines = zip(*found, strict=True)
        return Neighbours(np.concatenate(rows), np.concatenate(cosines))


def tasks_of(table: VectorTable) -> Mapping[str, list[list[str]]]:
    """What a table can be searched by: for each, columns of embeddings, one list for each task."""
    tasks: dict[str, list[str]] = {}
    for name in table.arrays:
        if found := _HEAD.fullmatch(name):
            tasks.setdefault(found[1], []).append(name)
    if not tasks:
        return {BOTH: [list(table.arrays)]}
    return {task: [names] for task, names in tasks.items()} | {BOTH: list(tasks.values())}


def blocks(queries: np.ndarray, videos: int) -> list[np.ndarray]:
    """Queries in pieces, so that few enough cosines with all videos are in memory at a time."""
    size = max(1, _BLOCK // max(1, videos))
    return [queries[first : first + size] for first in range(0, len(queries), size)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
