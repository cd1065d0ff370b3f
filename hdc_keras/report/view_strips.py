"""The views of a few training videos, as moving thumbnails."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import host_policy, window_spec
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.sampling import sample_windows, video_keys
from hdc_keras.errors import VideoDecodeError
from hdc_keras.report.thumbnails import FRAMES, ThumbnailSheet
from hdc_keras.views.generator import ViewGenerator

VIDEOS = 3
# Larger views are shrunk to this many pixels.
_MAX_SIDE = 96
_DESCRIPTIONS = {
    "anchor": "a window of the video",
    "spatial_positive": "another window, same crop as the anchor",
    "temporal_positive": "same window as the anchor, another crop",
    "coupled_positive": "another window, another crop",
    "shifted": "negative: another window",
    "reversed": "negative: the anchor played backwards",
    "shuffled": "negative: the anchor's frames in random order",
    "frozen": "negative: one frame of the anchor, repeated",
}


@dataclass(frozen=True)
class View:
    """One kind of view.

    Attributes:
        name: name of the view.
        what: a description of the view.
        pictures: CSS class of the thumbnail for each video.
    """

    name: str
    what: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class ViewStrips:
    """All views of some videos."""

    video_ids: tuple[str, ...]
    views: tuple[View, ...]


def draw_views(
    experiment: Experiment, records: Sequence[VideoRecord], store: FrameStore, sheet: ThumbnailSheet
) -> ViewStrips | None:
    """Draw the views of the first `VIDEOS` training videos that can be decoded, from their windows in the first epoch.

    Args:
        experiment: the run's experiment.
        records: the videos of the run.
        store: decodes the videos.
        sheet: the thumbnails are added to it.

    Returns:
        `None` if no video can be decoded.
    """
    spec, policy = window_spec(experiment), host_policy(experiment)
    windows, video_ids = [], []
    for record in records:
        if record.split != "train":
            continue
        try:
            key, count = video_keys([record.video_id]), np.array([store.count(record)])
            clips = store.clips(record, sample_windows(experiment.seed, 0, key, count, spec)[0])
        except VideoDecodeError:  # The run lists the video in failures.csv.
            continue
        windows.append(policy(clips).numpy() if policy else clips)
        video_ids.append(record.video_id)
        if len(video_ids) == VIDEOS:
            break
    if not video_ids:
        return None
    generator = ViewGenerator(experiment.views, experiment.contrast.task, experiment.seed)
    views = ops.convert_to_numpy(generator(np.stack(windows)))
    strips = _as_strips(views).reshape(len(generator.view_names), len(video_ids), FRAMES, *_shown_size(views), 3)
    return ViewStrips(
        tuple(video_ids),
        tuple(
            View(
                name.replace("_", " "),
                _DESCRIPTIONS.get(name, ""),
                tuple(sheet.add(f"view {name} {number}", strip) for number, strip in enumerate(of_view)),
            )
            for name, of_view in zip(generator.view_names, strips, strict=True)
        ),
    )


def _as_strips(views: np.ndarray) -> np.ndarray:
    """Select `FRAMES` frames and shrink large ones: (clips, time, height, width, 3) in [0, 1] to uint8."""
    frames = np.linspace(0, views.shape[1] - 1, FRAMES).round().astype(int)
    chosen = views[:, frames].astype(np.float32)
    height, width = _shown_size(views)
    if (height, width) != views.shape[2:4]:
        chosen = ops.convert_to_numpy(
            ops.image.resize(chosen.reshape(-1, *views.shape[2:]), (height, width), antialias=True)
        )
    return (255 * chosen).round().clip(0, 255).astype(np.uint8)


def _shown_size(views: np.ndarray) -> tuple[int, int]:
    side = min(_MAX_SIDE, views.shape[2])
    return side, side
