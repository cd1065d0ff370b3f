"""The views of a few clips, moving: what the network was asked to find alike, and what not."""

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
# Views are shown at this many pixels at most.
_SIDE = 96
_WHAT_IT_IS = {
    "anchor": "a window of the video",
    "spatial_positive": "another moment, in the anchor's crop",
    "temporal_positive": "the same moment, in another crop",
    "coupled_positive": "another moment, in another crop",
    "shifted": "another moment, as a negative",
    "reversed": "the anchor backwards, as a negative",
    "shuffled": "the anchor's frames in disorder, as a negative",
    "frozen": "one frame of the anchor, as a negative",
}


@dataclass(frozen=True)
class View:
    """One kind of view.

    Attributes:
        name: of the view.
        what: what it is, in words.
        pictures: CSS class of the strip of each video.
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
    """Draw the views of the first training videos that decode, as the first epoch of the run saw their windows.

    Args:
        experiment: the run's own.
        records: its videos.
        store: decodes them.
        sheet: gets the pictures.

    Returns:
        `None` where no video can be decoded.
    """
    spec, policy = window_spec(experiment), host_policy(experiment)
    windows, shown = [], []
    for record in records:
        if record.split != "train":
            continue
        try:
            key, count = video_keys([record.video_id]), np.array([store.count(record)])
            clips = store.clips(record, sample_windows(experiment.seed, 0, key, count, spec)[0])
        except VideoDecodeError:  # the run has listed it
            continue
        windows.append(policy(clips).numpy() if policy else clips)
        shown.append(record.video_id)
        if len(shown) == VIDEOS:
            break
    if not shown:
        return None
    generator = ViewGenerator(experiment.views, experiment.contrast.task, experiment.seed)
    made = ops.convert_to_numpy(generator(np.stack(windows)))
    strips = _as_strips(made).reshape(len(generator.view_names), len(shown), FRAMES, *_shown_size(made), 3)
    views = [
        View(
            name.replace("_", " "),
            _WHAT_IT_IS.get(name, ""),
            tuple(sheet.add(f"view {name} {number}", strip) for number, strip in enumerate(of_view)),
        )
        for name, of_view in zip(generator.view_names, strips, strict=True)
    ]
    return ViewStrips(tuple(shown), tuple(views))


def _as_strips(views: np.ndarray) -> np.ndarray:
    """(clips, time, height, width, 3) in [0, 1] -> (clips, `FRAMES`, ..., 3) uint8, smaller where they are large."""
    frames = np.linspace(0, views.shape[1] - 1, FRAMES).round().astype(int)
    chosen = views[:, frames].astype(np.float32)
    height, width = _shown_size(views)
    if (height, width) != views.shape[2:4]:
        chosen = ops.convert_to_numpy(
            ops.image.resize(chosen.reshape(-1, *views.shape[2:]), (height, width), antialias=True)
        )
    return (255 * chosen).round().clip(0, 255).astype(np.uint8)


def _shown_size(views: np.ndarray) -> tuple[int, int]:
    side = min(_SIDE, views.shape[2])
    return side, side
