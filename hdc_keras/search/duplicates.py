"""Groups of videos that are almost the same, such as cuts and copies of one recording."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hdc_keras.data.records import VideoRecord
from hdc_keras.data.remote import is_remote
from hdc_keras.search.space import SearchSpace, blocks

# Of the cosine of two equal vectors in float32.
_ROUNDING = 1e-6


def near_duplicates(
    space: SearchSpace, cosine: float, progress: Callable[[int, int], None] | None = None
) -> list[list[int]]:
    """Group videos of which each is near to another one of its group. Every video is compared with every other one.

    Args:
        space: the vectors.
        cosine: the least cosine similarity of two videos that are taken for almost the same.
        progress: called with (videos compared, total videos).

    Returns:
        The rows of each group of two videos or more, in ascending order.
    """
    count, done = len(space.vectors), 0
    group_of = np.arange(count)
    # Merged block by block, so that the pairs of a block alone are in memory.
    for block in blocks(space.vectors, count):
        rows, columns = np.nonzero(block @ space.vectors.T >= cosine - _ROUNDING)
        group_of = _merged(group_of, rows + done, columns)
        done += len(block)
        if progress:
            progress(done, count)
    return [rows for rows in _members(group_of) if len(rows) > 1]


def _members(group_of: np.ndarray) -> list[list[int]]:
    """The rows of each group."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_of):
        members.setdefault(int(group), []).append(row)
    return list(members.values())


def _merged(group_of: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The group of each video after the groups of `rows` and `others` have been merged, pair by pair."""
    count = len(group_of)
    pairs = (np.ones(len(rows), bool), (group_of[rows], group_of[others]))
    _, merged = connected_components(coo_array(pairs, shape=(count, count)), directed=False)
    return merged[group_of]


def manifest_of(records: Sequence[VideoRecord], groups: Sequence[Sequence[int]]) -> str:
    """A CSV manifest of the videos, for `--data`, whose column `group` names the groups.

    Videos that share a `group` already stay together, so groups may grow. A group is called by its first video. Splits
    are left out, because they may divide a group.
    """
    first_of: dict[str, int] = {}
    given = [first_of.setdefault(one.group, row) if one.group else row for row, one in enumerate(records)]
    pairs = [(row, rows[0]) for rows in groups for row in rows] + list(enumerate(given))
    members = _members(_merged(np.arange(len(records)), *np.array(pairs, int).T))
    group_of = {row: records[rows[0]].group or records[rows[0]].video_id for rows in members for row in rows}
    labels = list(dict.fromkeys(name for record in records for name in record.labels))
    columns = {name: name if name == "label" else f"label_{name}" for name in labels}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    has_segments = any(record.segment for record in records)
    writer.writerow(["path", "video_id", *columns.values(), "group", *(("start", "end") if has_segments else ())])
    for row, record in enumerate(records):
        of_video = [record.labels.get(name, "") for name in labels]
        segment = (record.segment or ("", "")) if has_segments else ()
        path = record.path if is_remote(record.path) else Path(record.path).absolute()
        writer.writerow([path, record.video_id, *of_video, group_of[row], *segment])
    return text.getvalue()
