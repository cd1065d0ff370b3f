"""Groups of videos that are almost the same, such as cuts and copies of one recording."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hdc_keras.data.records import VideoRecord
from hdc_keras.search.space import SearchSpace, blocks


def near_duplicates(
    space: SearchSpace, cosine: float, progress: Callable[[int, int], None] | None = None
) -> list[list[int]]:
    """Group videos of which each is near to another one of its group.

    Videos that share a `group` already stay together. Every video is compared with every other one.

    Args:
        space: the vectors.
        cosine: the least cosine similarity of two videos that are taken for almost the same.
        progress: called with (videos compared, total videos).

    Returns:
        The rows of each group of two videos or more, in ascending order.
    """
    count, pairs, done = len(space.vectors), [np.zeros((0, 2), int)], 0
    for block in blocks(space.vectors, count):
        near = np.argwhere(block @ space.vectors.T >= cosine)
        near[:, 0] += done
        pairs.append(near[near[:, 0] < near[:, 1]])
        done += len(block)
        if progress:
            progress(done, count)
    first_of: dict[str, int] = {}
    for row, record in enumerate(space.records):
        if record.group:
            pairs.append(np.array([[first_of.setdefault(record.group, row), row]]))
    rows, columns = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    _, group_of = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_of):
        members.setdefault(int(group), []).append(row)
    return [rows for rows in members.values() if len(rows) > 1]


def manifest_of(records: Sequence[VideoRecord], groups: Sequence[Sequence[int]]) -> str:
    """A CSV manifest of the videos, for `--data`, whose column `group` names the groups.

    A group is called by its first video. Splits are left out, because they may divide a group.
    """
    group_of = {row: records[rows[0]].group or records[rows[0]].video_id for rows in groups for row in rows}
    labels = list(dict.fromkeys(name for record in records for name in record.labels))
    columns = {name: name if name == "label" else f"label_{name}" for name in labels}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    has_segments = any(record.segment for record in records)
    writer.writerow(["path", "video_id", *columns.values(), "group", *(("start", "end") if has_segments else ())])
    for row, record in enumerate(records):
        group = group_of.get(row) or record.group or record.video_id
        of_video = [record.labels.get(name, "") for name in labels]
        segment = (record.segment or ("", "")) if has_segments else ()
        writer.writerow([Path(record.path).absolute(), record.video_id, *of_video, group, *segment])
    return text.getvalue()
