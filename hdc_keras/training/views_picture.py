"""`views.png`: the first training videos as the network sees them."""

import numpy as np

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import window_spec
from hdc_keras.data.sampling import sample_windows, video_keys
from hdc_keras.errors import VideoDecodeError
from hdc_keras.training.batches import TrainingVideos
from hdc_keras.views.gallery import GALLERY_VIDEOS, draw_gallery
from hdc_keras.views.generator import ViewGenerator


def draw_views(experiment: Experiment, videos: TrainingVideos) -> bytes:
    """Draw the views of the first videos that can be decoded, from the windows of the first epoch.

    Args:
        experiment: defines windows and views.
        videos: the training videos. Any that cannot be decoded are added to `videos.failures`.

    Returns:
        A PNG file.
    """
    windows: list[np.ndarray] = []
    for record in videos.records:
        try:
            key, count = video_keys([record.video_id]), np.array([videos.store.count(record)])
            indices = sample_windows(experiment.seed, 0, key, count, window_spec(experiment))
            clips = videos.store.clips(record, indices[0])
            windows.append(videos.policy(clips).numpy() if videos.policy else clips)
        except VideoDecodeError as error:
            videos.failures.add(error, record.video_id)
        if len(windows) == GALLERY_VIDEOS:
            break
    # A separate generator: draws from the model's generator would change the views of the training.
    generator = ViewGenerator(experiment.views, experiment.contrast.task, experiment.seed)
    return draw_gallery(generator, np.stack(windows))
