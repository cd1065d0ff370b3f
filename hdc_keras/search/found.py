"""What a search found, as it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FoundVideo:
    """One video that was found.

    Attributes:
        video_id: its id.
        label: its class, if it has one.
        cosine: cosine similarity with the query; `None` where there is no query.
    """

    video_id: str
    label: str
    cosine: float | None


@dataclass(frozen=True)
class Row:
    """Videos side by side.

    Attributes:
        title: in what they are alike; may be empty.
        asked: id of the query; empty where there is none.
        found: the videos.
    """

    title: str
    asked: str
    found: Sequence[FoundVideo]


@dataclass(frozen=True)
class Group:
    """Rows under a title."""

    title: str
    rows: Sequence[Row]
