"""The videos of an evaluation: one split of a data set, or several official splits."""

from collections.abc import Callable, Mapping, Sequence

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.data.records import VideoRecord, at_most_per_class
from hdc_keras.errors import ConfigError, DataError
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.videos import own_videos

# Videos of each split, by its name. `VideoRecord.split` says on which side of that split a video is.
Splits = Mapping[str, Sequence[VideoRecord]]


def load_splits(
    experiment: Experiment,
    which: str,
    progress: Callable[[int, int], None] | None = None,
    run: RunDirectory | None = None,
) -> tuple[dict[str, list[VideoRecord]], list[str]]:
    """Load the experiment's videos.

    Args:
        experiment: its `data` section names the set.
        which: "own" for the split of `data.official_split`; "all" for the three official splits of UCF101 or HMDB51.
        progress: called with (videos rendered, total videos) when moving shapes are rendered.
        run: the run to evaluate. On its own videos, "own" is the split that it was trained with.

    Returns:
        Videos of each split, by its name; and notes for the user.

    Raises:
        ConfigError: `which` is neither "own" nor "all", or a key is changed that would draw another split of the run.
        DataError: the set cannot be read, or "all" is requested for a set without official splits.
    """
    if which not in ("own", "all"):
        raise ConfigError(f"--splits {which}: expected own or all.")
    is_own = run is not None and which == "own" and experiment.data.path == run.experiment().data.path
    first = own_videos(run.path, experiment, progress) if run and is_own else load_videos(experiment, progress)
    if which == "own":
        return {str(experiment.data.official_split): first.records}, first.notes
    splits = {}
    for number in (1, 2, 3):
        data = experiment.data.model_copy(update={"official_split": number})
        splits[str(number)] = load_videos(experiment.model_copy(update={"data": data})).records
    if _sides(splits["1"]) == _sides(splits["2"]):
        raise DataError(
            f"--splits all: {experiment.data.path or 'moving shapes'} has no official splits. Only UCF101 and HMDB51 "
            "have them, read from video files and the lists that come with the data sets."
        )
    return splits, first.notes


def with_labels_per_class(records: Sequence[VideoRecord], experiment: Experiment) -> list[VideoRecord]:
    """Keep at most `evaluate.labels_per_class` training videos of each class, drawn at random, and every test video."""
    train = [record for record in records if record.split != "test"]
    if experiment.evaluate.labels_per_class:
        train = at_most_per_class(train, experiment.evaluate.labels_per_class, experiment.seed)
    return train + [record for record in records if record.split == "test"]


def _sides(records: Sequence[VideoRecord]) -> dict[str, str | None]:
    return {record.video_id: record.split for record in records}
