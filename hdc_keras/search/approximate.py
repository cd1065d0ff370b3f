"""An index that finds almost all of the nearest videos without comparing with every one (HNSW, by usearch).

Malkov and Yashunin, TPAMI 2020 (arXiv 1603.09320). Comparing with every one of 100,000 videos takes milliseconds, so
an index pays from about a million (docs/performance.md).
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from usearch.index import Index

from hdc_keras.errors import RunError
from hdc_keras.files import replacing
from hdc_keras.locks import exclusive
from hdc_keras.search.space import Neighbours, SearchSpace

# Videos added between two reports of progress.
_BATCH = 4096


class ApproximateIndex:
    """The index of a search space, kept in a file: built on first use, then mapped into memory.

    Args:
        space: the vectors.
        file: the table of the vectors. The index lies beside it, and its name holds a digest of the vectors.
        progress: called with (videos added, total videos) while the index is built.

    Attributes:
        file: the index.

    Raises:
        RunError: the index cannot be written or read.
    """

    def __init__(self, space: SearchSpace, file: Path, progress: Callable[[int, int], None] | None = None):
        digest = hashlib.sha256(space.vectors.tobytes()).hexdigest()[:12]
        self.file = file.with_name(f"{file.stem}.{space.by}.{digest}.usearch")
        try:
            if not self.file.exists():
                with exclusive(self.file):
                    if not self.file.exists():
                        with replacing(self.file) as temporary:
                            _build(space.vectors, progress).save(str(temporary))
        except OSError as error:
            raise RunError(f"{self.file} cannot be written ({error.strerror or error}). Search without it.") from error
        try:
            restored = Index.restore(str(self.file), view=True)
        except (RuntimeError, ValueError):  # usearch raises either for the same damage
            restored = None
        if restored is None or (len(restored), restored.ndim) != space.vectors.shape:
            raise RunError(f"{self.file} is damaged. Delete it; it is built again.")
        self._index = restored

    def nearest(self, queries: np.ndarray, count: int) -> Neighbours:
        """As `SearchSpace.nearest`, but a few of the nearest may be missed."""
        count = min(count, len(self._index))
        found = self._index.search(queries, count)
        keys = np.atleast_2d(found.keys).astype(np.int64)
        return Neighbours(keys, 1.0 - np.atleast_2d(found.distances).astype(np.float32))


def _build(vectors: np.ndarray, progress: Callable[[int, int], None] | None) -> Index:
    index = Index(ndim=vectors.shape[1], metric="cos", dtype="f16")
    for first in range(0, len(vectors), _BATCH):
        added = vectors[first : first + _BATCH]
        try:
            index.add(np.arange(first, first + len(added)), added)
        except RuntimeError as error:
            if "terminated" in str(error):  # by Ctrl-C
                raise KeyboardInterrupt from error
            raise
        if progress:
            progress(first + len(added), len(vectors))
    return index
