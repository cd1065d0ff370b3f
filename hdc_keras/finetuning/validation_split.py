"""Hold out some of the training videos, to choose the best epoch of a fine-tuning."""

from collections.abc import Sequence
from dataclasses import replace

from hdc_keras.data.records import VideoRecord, with_splits
from hdc_keras.errors import DataError


def hold_out(
    records: Sequence[VideoRecord], share: float, column: str, seed: int
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Divide the training videos into a training set and a validation set.

    A "val" split, if there is one, becomes the validation set. Otherwise about `share` of the videos of each class is
    held out, keeping the videos of a group together. If some class has too few groups for that, nothing is held out.

    Args:
        records: videos with splits; test videos are ignored.
        share: share of the training videos to hold out, in [0, 1); 0 for no validation, even if there is a "val" split.
        column: the label column that defines the classes.
        seed: seed of the draw.

    Returns:
        Training videos and validation videos. There may be no validation videos.
    """
    train = [record for record in records if record.split == "train"]
    validation = [record for record in records if record.split == "val"]
    if not share or validation:
        return train, validation if share else []
    unsplit = [replace(record, labels={column: record.labels[column]}, split=None) for record in train]
    try:
        held_out = {record.video_id for record in with_splits(unsplit, share, seed) if record.split == "test"}
    except DataError:
        return train, []
    return (
        [record for record in train if record.video_id not in held_out],
        [record for record in train if record.video_id in held_out],
    )
