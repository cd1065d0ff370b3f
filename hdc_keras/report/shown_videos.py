"""Which videos a report shows, and from which data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import HDCError
from hdc_keras.results.store import PRETRAINED, SavedResult
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.videos import own_videos

_MOVING_SHAPES = "moving-shapes"
# With more points, the map is unreadable and the file too large to open at once (our choice).
MAX_ON_MAP = 600


@dataclass(frozen=True)
class ShownVideos:
    """The videos of the data set that a report shows.

    Attributes:
        experiment: the run's experiment, with the shown data set in its `data` section.
        records: all videos of the data set.
        on_map: the videos on the map of embeddings; at most `MAX_ON_MAP`.
        on_map_are: a name for the videos on the map, such as "test videos".
        problem: why there are no videos; empty if there are.
    """

    experiment: Experiment
    records: list[VideoRecord] = field(default_factory=list)
    on_map: list[VideoRecord] = field(default_factory=list)
    on_map_are: str = ""
    problem: str = ""

    @property
    def dataset(self) -> str:
        """The data set, as results name it."""
        return _dataset_of(self.experiment)

    def by_id(self) -> dict[str, VideoRecord]:
        """The videos by id."""
        return {record.video_id: record for record in self.records}


def find_videos(
    experiment: Experiment,
    results: Sequence[SavedResult],
    progress: Callable[[int, int], None] | None = None,
    run: RunDirectory | None = None,
) -> ShownVideos:
    """Read the videos of the data set to show.

    This is the data set that the run was trained on. If the run was evaluated only on other data sets, it is the first
    of them. Videos that cannot be read are not an error: the report is then written without pictures, and says why.

    Args:
        experiment: the run's experiment.
        results: the run's results.
        progress: called with (videos done, total videos) while moving shapes are rendered.
        run: the run, whose own videos keep the split that it was trained with.
    """
    evaluated = [result.dataset for result in results]
    trained_on = _dataset_of(experiment)
    shown = trained_on if trained_on in evaluated or not evaluated else evaluated[0]
    if shown != trained_on:
        path = None if shown == _MOVING_SHAPES else shown
        data = experiment.data.model_copy(update={"path": path, "layout": "auto", "annotations": None})
        experiment = experiment.model_copy(update={"data": data})
    try:
        is_own = run is not None and shown == trained_on
        records = (
            own_videos(run.path, experiment, progress) if run and is_own else load_videos(experiment, progress)
        ).records
    except HDCError as error:
        return ShownVideos(experiment, problem=f"The videos of {shown} cannot be read: {error}")
    tested = {
        video.video_id
        for result in results
        if result.dataset == shown
        for video in result.videos
        if video.network == PRETRAINED
    }
    for on_map_are, on_map in (
        ("test videos", [record for record in records if record.video_id in tested]),
        ("held-out videos", [record for record in records if record.split == "test"]),
        ("training videos", list(records)),
    ):
        if on_map:
            return ShownVideos(experiment, records, every_nth(on_map, MAX_ON_MAP), on_map_are)
    return ShownVideos(experiment, problem=f"{shown} contains no videos.")


def every_nth(records: Sequence[VideoRecord], limit: int) -> list[VideoRecord]:
    """At most `limit` videos, evenly spaced, so that every class is represented in a set sorted by class."""
    if len(records) <= limit:
        return list(records)
    return [records[number * len(records) // limit] for number in range(limit)]


def _dataset_of(experiment: Experiment) -> str:
    return experiment.data.path or _MOVING_SHAPES
