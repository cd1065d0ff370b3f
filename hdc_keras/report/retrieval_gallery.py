"""Queries and what retrieval finds for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hdc_keras.data.records import VideoRecord
from hdc_keras.results.store import PRETRAINED, JudgedVideo, SavedResult

QUERIES = 12
NEIGHBOURS = 5


@dataclass(frozen=True)
class FoundVideo:
    """One neighbour.

    Attributes:
        video_id: the training video.
        label: its class.
        is_right: whether that is the query's.
    """

    video_id: str
    label: str
    is_right: bool


@dataclass(frozen=True)
class Query:
    """A test video and its nearest training videos, nearest first."""

    video_id: str
    label: str
    found: tuple[FoundVideo, ...]


@dataclass(frozen=True)
class Gallery:
    """Some queries for one label column."""

    title: str
    queries: tuple[Query, ...]

    @property
    def video_ids(self) -> set[str]:
        """All videos that are shown."""
        return {query.video_id for query in self.queries} | {one.video_id for q in self.queries for one in q.found}


def retrieval_galleries(results: Sequence[SavedResult], records: Mapping[str, VideoRecord]) -> list[Gallery]:
    """A gallery for each label column of each result with neighbours, of those videos that are in the set.

    Args:
        results: of the data set.
        records: its videos by id; neighbours' classes are theirs.
    """
    galleries = []
    for result in results:
        for column in result.values[PRETRAINED]:
            judged = [v for v in result.judged(PRETRAINED, column) if v.neighbours and v.video_id in records]
            queries = tuple(_query(video, column, records) for video in choose_queries(judged, QUERIES))
            if queries:
                galleries.append(Gallery(column, queries))
    return galleries


def choose_queries(judged: Sequence[JudgedVideo], most: int) -> list[JudgedVideo]:
    """The first videos of each class by id, in turn over the classes: chosen without a look at what was found."""
    by_class: dict[str, list[JudgedVideo]] = {}
    seen: set[str] = set()
    for video in sorted(judged, key=lambda video: video.video_id):
        if video.video_id not in seen:  # several splits or seeds judge a video several times
            seen.add(video.video_id)
            by_class.setdefault(video.label, []).append(video)
    ordered = sorted(by_class.items())
    if len(ordered) > most:  # spread over the alphabet
        ordered = [ordered[number * len(ordered) // most] for number in range(most)]
    longest = max((len(videos) for _, videos in ordered), default=0)
    in_turn = [videos[place] for place in range(longest) for _, videos in ordered if place < len(videos)]
    return sorted(in_turn[:most], key=lambda video: (video.label, video.video_id))


def _query(video: JudgedVideo, column: str, records: Mapping[str, VideoRecord]) -> Query:
    found = []
    for video_id in video.neighbours[:NEIGHBOURS]:
        record = records.get(video_id)
        label = record.labels.get(column, "") if record else ""
        found.append(FoundVideo(video_id, label, label == video.label))
    return Query(video.video_id, video.label, tuple(found))
