"""`views.png`: the first training videos as the network sees them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import window_spec
from hdc_keras.data.loading import DecodeFailures, FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.data.sampling import sample_windows, video_keys
from hdc_keras.errors import VideoDecodeError
from hdc_keras.views.gallery import GALLERY_VIDEOS, draw_gallery
from hdc_keras.views.generator import ViewGenerator


def draw_views(
    experiment: Experiment,
    records: Sequence[VideoRecord],
    store: FrameStore,
    failures: DecodeFailures,
    policy: Any,
) -> bytes:
    """Draw the views of the first videos that can be decoded, as in the first epoch.

    Args:
        experiment: says how windows and views are made.
        records: training videos.
        store: decodes them.
        failures: notes those that cannot be decoded.
        policy: host policy, or `None`.

    Returns:
        A PNG file.
    """
    windows: list[np.ndarray] = []
    for record in records:
        try:
            key, count = video_keys([record.video_id]), np.array([store.count(record)])
            indices = sample_windows(experiment.seed, 0, key, count, window_spec(experiment))
            clips = store.clips(record, indices[0])
            windows.append(policy(clips).numpy() if policy else clips)
        except VideoDecodeError as error:
            failures.add(error)
        if len(windows) == GALLERY_VIDEOS:
            break
    # A generator of its own, so that the picture does not advance the random state of training.
    generator = ViewGenerator(experiment.views, experiment.contrast.task, experiment.seed)
    return draw_gallery(generator, np.stack(windows))
