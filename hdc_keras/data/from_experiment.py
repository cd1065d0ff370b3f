"""Builds what the sections `data` and `views` describe: videos, window specification, frame store, host policy.

The videos are read without a backend, so that commands can refuse a wrong set before they start one.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hdc_keras.config import Experiment, Length
from hdc_keras.data.datasets import VideoSet, read_local_dataset
from hdc_keras.data.records import SPLITS, VideoRecord, at_most_per_class, read_records, with_splits
from hdc_keras.data.sampling import WindowSpec, count_steps, random_generator
from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes
from hdc_keras.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from hdc_keras.data.loading import FrameStore


def load_videos(
    experiment: Experiment, progress: Callable[[int, int], None] | None = None, label: str | None = None
) -> VideoSet:
    """The experiment's videos, each with a split. Moving shapes are rendered unless they are cached.

    `data.limit_per_class` and `data.limit` restrict how many videos of each class and split are kept. The kept videos
    are drawn at random.

    Args:
        experiment: its `data` section and `seed` determine the videos.
        progress: called with (videos rendered, total videos) while moving shapes are rendered.
        label: the only label column to read; the classes of splits and limits are then its classes. All when `None`.

    Raises:
        ConfigError: the videos have no such label column.
        DataError: the videos or their manifest cannot be read.
    """
    data = experiment.data
    notes: list[str] = []
    if data.path is None:
        train, test = data.shapes_per_pair
        records = read_records(ensure_moving_shapes(MovingShapes(train, test), progress))
    else:
        records, notes = read_local_dataset(data)
    if label is not None:
        records = _with_label(records, label)
    # Random choices depend on the order, which differs between a set and its prepared copy.
    records = sorted(records, key=lambda record: record.video_id)
    records = with_splits(records, data.holdout, experiment.seed)
    if data.limit_per_class:
        records = at_most_per_class(records, data.limit_per_class, experiment.seed)
    if data.limit:
        order = random_generator("limit", experiment.seed).permutation(len(records))
        kept = [i for split in SPLITS for i in [i for i in order if records[i].split == split][: data.limit]]
        records = [records[i] for i in sorted(kept)]
    return VideoSet(records, notes)


def _with_label(records: Sequence[VideoRecord], label: str) -> list[VideoRecord]:
    columns = list(dict.fromkeys(column for record in records for column in record.labels))
    if label not in columns and label.removeprefix("label_") in columns:  # its name in a manifest
        label = label.removeprefix("label_")
    if label not in columns:
        raise ConfigError(
            f"--label {label}: the videos have no such label.{did_you_mean(label, columns)} "
            f"Known: {', '.join(columns) or 'none'}."
        )
    return [replace(one, labels={label: one.labels[label]} if label in one.labels else {}) for one in records]


def load_undivided_videos(experiment: Experiment) -> VideoSet:
    """Every video of `data.path`, with its split only if the set defines splits.

    `load_videos` holds out test videos where a set defines no splits, and fails if a class has only one video.
    Embedding and classifying do not train, so no videos need to be held out.

    Raises:
        ConfigError: `data.limit` or `data.limit_per_class` is set.
        DataError: the set cannot be read, or is remote.
    """
    data = experiment.data
    for name in ("limit", "limit_per_class"):
        if getattr(data, name):
            raise ConfigError(
                f"data.{name} cannot be used with `embed` and `predict`, which read every video of a set. To read "
                "only some videos, list them in a CSV manifest."
            )
    return read_local_dataset(data)


def length_of(experiment: Experiment, records: Sequence[VideoRecord]) -> Length:
    """How long the experiment's run is. Raises `DataError` if the training videos do not fill one batch."""
    videos = sum(record.split == "train" for record in records)
    return experiment.train.length(count_steps(videos, experiment.train.batch_size))


def window_spec(experiment: Experiment) -> WindowSpec:
    """Specification of the experiment's windows."""
    data, views = experiment.data, experiment.views
    return WindowSpec(data.frames, data.stride, views.min_gap, views.second_strides or (data.stride,), views.reverse)


def frame_store(experiment: Experiment, keeps: bool = True) -> "FrameStore":
    """Frame store with the experiment's frame size, decoder and frame rate.

    Args:
        experiment: its `data` section.
        keeps: whether decoded videos are kept in memory, up to `data.cache_gb`. What reads every video once does not.
    """
    from hdc_keras.data.loading import FrameStore

    data = experiment.data
    return FrameStore(data.decode_size, data.cache_gb if keeps else 0.0, data.decoder, data.fps)


def host_policy(experiment: Experiment) -> Any:
    """The experiment's `HostPolicy`, or `None`. Raises `ConfigError` when it cannot be built."""
    layers = experiment.views.host_policy
    if not layers:
        return None
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "`views.host_policy` is applied in tf.data, so it needs KERAS_BACKEND=tensorflow. Received: "
            f"{keras.backend.backend()}"
        )
    from hdc_keras.data.host_policy import HostPolicy

    return HostPolicy(layers)
