"""The retrieval gallery: query videos and their nearest training videos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hdc_keras.data.records import VideoRecord
from hdc_keras.results.store import PRETRAINED, JudgedVideo, SavedResult

# Our choice.
QUERIES = 12
NEIGHBOURS = 5


@dataclass(frozen=True)
class FoundVideo:
    """One retrieved video.

    Attributes:
        video_id: the training video.
        label: its class.
        is_right: whether it has the class of the query.
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
        """Ids of all videos in the gallery."""
        return {query.video_id for query in self.queries} | {one.video_id for q in self.queries for one in q.found}


def retrieval_galleries(results: Sequence[SavedResult], records: Mapping[str, VideoRecord]) -> list[Gallery]:
    """Make a gallery for each label column of each result that has neighbours.

    Args:
        results: results on the data set.
        records: videos of the data set by id. Queries that are not among them are left out; neighbours get their class
            from them.
    """
    galleries = []
    for result in results:
        for column in result.values[PRETRAINED]:
            candidates = [v for v in result.judged(PRETRAINED, column) if v.neighbours and v.video_id in records]
            queries = tuple(_query(video, column, records) for video in choose_queries(candidates, QUERIES))
            if queries:
                galleries.append(Gallery(column, queries))
    return galleries


def choose_queries(candidates: Sequence[JudgedVideo], limit: int) -> list[JudgedVideo]:
    """Choose the first videos of each class by id, so that the choice does not depend on what was retrieved."""
    by_class: dict[str, list[JudgedVideo]] = {}
    seen: set[str] = set()
    for video in sorted(candidates, key=lambda video: video.video_id):
        if video.video_id not in seen:  # Several splits or seeds may contain the same video.
            seen.add(video.video_id)
            by_class.setdefault(video.label, []).append(video)
    classes = sorted(by_class.items())
    if len(classes) > limit:  # Choose classes evenly over the alphabet.
        classes = [classes[number * len(classes) // limit] for number in range(limit)]
    longest = max((len(videos) for _, videos in classes), default=0)
    in_turn = [videos[number] for number in range(longest) for _, videos in classes if number < len(videos)]
    return sorted(in_turn[:limit], key=lambda video: (video.label, video.video_id))


def _query(video: JudgedVideo, column: str, records: Mapping[str, VideoRecord]) -> Query:
    found = []
    for video_id in video.neighbours[:NEIGHBOURS]:
        record = records.get(video_id)
        label = record.labels.get(column, "") if record else ""
        found.append(FoundVideo(video_id, label, label == video.label))
    return Query(video.video_id, video.label, tuple(found))
