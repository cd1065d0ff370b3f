"""Which videos a report shows, and where they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import HDCError
from hdc_keras.results.store import PRETRAINED, SavedResult

# Beyond this a map is a blot, and the file grows past what a browser opens at once (our choice).
MOST_ON_THE_MAP = 600


@dataclass(frozen=True)
class ShownVideos:
    """The videos of the data set that the run was judged on, or else of its own.

    Attributes:
        experiment: the run's, with that data set.
        records: all of its videos.
        tested: those that were judged, or else are held out; at most `MOST_ON_THE_MAP`.
        tested_are: what `tested` are, in words.
        problem: why there are no videos; empty when there are.
    """

    experiment: Experiment
    records: list[VideoRecord] = field(default_factory=list)
    tested: list[VideoRecord] = field(default_factory=list)
    tested_are: str = ""
    problem: str = ""

    def by_id(self) -> dict[str, VideoRecord]:
        """The videos by their ids."""
        return {record.video_id: record for record in self.records}


def find_videos(
    experiment: Experiment,
    results: Sequence[SavedResult],
    progress: Callable[[int, int], None] | None = None,
) -> ShownVideos:
    """Read the data set again. That it has gone is no error: the report goes without pictures, and says so."""
    own = experiment.data.path or "moving-shapes"
    datasets = [result.dataset for result in results]
    shown = own if own in datasets or not datasets else datasets[0]
    data = experiment.data
    if shown != own:
        path = None if shown == "moving-shapes" else shown
        data = data.model_copy(update={"path": path, "layout": "auto", "annotations": None})
    experiment = experiment.model_copy(update={"data": data})
    try:
        records = load_videos(experiment, progress).records
    except HDCError as error:
        return ShownVideos(experiment, problem=f"The videos of {shown} cannot be read: {error}")
    judged = {
        video.video_id
        for result in results
        if result.dataset == shown
        for video in result.videos
        if video.network == PRETRAINED
    }
    for tested_are, tested in (
        ("test videos", [record for record in records if record.video_id in judged]),
        ("held-out videos", [record for record in records if record.split == "test"]),
        ("training videos", list(records)),
    ):
        if tested:
            return ShownVideos(experiment, records, every_nth(tested, MOST_ON_THE_MAP), tested_are)
    return ShownVideos(experiment, problem=f"{shown} holds no video.")


def every_nth(records: Sequence[VideoRecord], most: int) -> list[VideoRecord]:
    """At most `most` of the videos, evenly spread over their order, in which classes mostly lie together."""
    if len(records) <= most:
        return list(records)
    return [records[number * len(records) // most] for number in range(most)]
