"""Made-up features whose informative channels only a correctly normalising protocol can use."""

import numpy as np

from hdc_keras.data.records import VideoRecord
from hdc_keras.features.video_features import VideoFeatures


def made_features(per_class=12, columns=("shape", "half"), lengths=None, seed=0):
    """Features of videos of three classes; a third are test videos. No array encodes the label `half`.

    Args:
        per_class: number of videos of each shape.
        columns: the label columns.
        lengths: "tiny" or "varied": multiply the features of each video in `direction` by a power of two.
        seed: seed of the features.

    Returns:
        Arrays by name, with two views of each video:

        - `direction`: one channel per shape, of similar scale.
        - `scaled`: the same, a thousand times smaller, and one uninformative channel that is a hundred times larger.
          Without standardisation, the shape cannot be predicted from it.
        - `noise`: encodes no label.
    """
    random = np.random.default_rng(seed)
    videos = 3 * per_class
    shapes = np.arange(videos) // per_class
    records = []
    for number, shape in enumerate(shapes):
        labels = {"shape": "abc"[shape], "half": "xy"[number % 2]}
        split = "test" if number % 3 == 0 else "train"
        records.append(VideoRecord(f"{number}", f"{number}", {column: labels[column] for column in columns}, split))
    direction = np.eye(3)[shapes] + 0.05 * random.normal(size=(videos, 3))
    large = 200 + 100 * random.normal(size=(videos, 1))
    exponents = {None: np.zeros(videos), "tiny": np.full(videos, -12), "varied": random.integers(-12, 4, videos)}
    arrays = {
        "direction": direction * 2.0 ** exponents[lengths][:, None],
        "scaled": np.concatenate([direction / 1000, large], axis=1),
        "noise": random.normal(size=(videos, 4)),
    }
    arrays = {name: array.astype("float32") for name, array in arrays.items()}
    views = {name: np.stack([0.75 * array, 1.25 * array], axis=1) for name, array in arrays.items()}
    return VideoFeatures(records, arrays, len(records), {}, views)
