from dataclasses import replace

import numpy as np
import pytest

from hdc_keras.data.records import VideoRecord
from hdc_keras.features.video_features import VideoFeatures, joined


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    records = [VideoRecord(f"{i}", f"{i}", {"label": "x"}, "test" if i % 3 == 0 else "train") for i in range(36)]
    arrays = {"P2": random.normal(5, 3, (36, 4)), "P5": random.normal(0.01, 0.001, (36, 3))}
    return VideoFeatures(records, arrays, 38, {"bad": "no frames", "worse": "no file"})


def test_channels_are_standardised_by_the_training_videos(features):
    train, test = features.of_split("train"), features.of_split("test")

    train_joined, test_joined = joined(train, test, ["P2", "P5"])

    assert train_joined.shape == (24, 7) and test_joined.shape == (12, 7)
    assert train_joined.dtype == test_joined.dtype == np.float32
    np.testing.assert_allclose(train_joined.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train_joined.std(axis=0), 1, atol=2e-3)
    mean, deviation = train.arrays["P2"].mean(axis=0), train.arrays["P2"].std(axis=0)
    np.testing.assert_allclose(test_joined[:, :4], (test.arrays["P2"] - mean) / deviation, atol=1e-4)


def test_features_are_selected_by_id_with_the_splits_given(features):
    chosen = [replace(features.records[i], split="val") for i in (5, 2)]

    selected = features.select([*chosen, VideoRecord("elsewhere", "unknown")])

    assert selected.records == chosen
    np.testing.assert_array_equal(selected.arrays["P5"], features.arrays["P5"][[5, 2]])
    assert (selected.asked, selected.failed) == (38, features.failed)
