import contextlib

import numpy as np
import pytest
from keras import ops

from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.errors import RunError
from hdc_keras.features.extraction import extract_features
from hdc_keras.features.store import FeatureStore


@pytest.fixture
def records(shapes_folder, tmp_path):
    """Three videos and one that cannot be decoded."""
    (tmp_path / "broken.mp4").write_text("not a video")
    return [*read_records(shapes_folder)[:3], VideoRecord(str(tmp_path / "broken.mp4"), "broken")]


@contextlib.contextmanager
def other_weights(network):
    """Change a weight of the shared network, and restore it afterwards."""
    variable = network.trainable_variables[0]
    before = ops.convert_to_numpy(variable).copy()
    variable.assign(before + 1)
    try:
        yield
    finally:
        variable.assign(before)


@contextlib.contextmanager
def without_encoding(network):
    """Fail if the network is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "predict_on_batch", None)
        yield


def test_cached_features_are_returned_in_any_order_of_videos(records, encoder, experiment, store, tmp_path):
    cache = FeatureStore(tmp_path / "features")
    first = extract_features(encoder, records, experiment, store, cache=cache, keep_views=True)
    reported = []

    with without_encoding(encoder):
        again = extract_features(
            encoder, records, experiment, store, lambda *done: reported.append(done), cache, keep_views=True
        )
        reverse = extract_features(encoder, records[::-1], experiment, store, cache=cache)

    assert reported == [(4, 4)]
    assert again.failed == first.failed and list(again.failed) == [records[-1].path]
    assert [record.video_id for record in again.records] == [record.video_id for record in first.records]
    assert [record.video_id for record in reverse.records] == [record.video_id for record in first.records][::-1]
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
        np.testing.assert_array_equal(again.views[name], first.views[name])
        np.testing.assert_array_equal(reverse.arrays[name], array[::-1])


def test_other_weights_videos_or_clips_are_extracted_again(records, encoder, experiment, store, tmp_path):
    cache = FeatureStore(tmp_path / "features")

    def is_cached(records=records, experiment=experiment):
        return cache.find(encoder, records, experiment) is not None

    extract_features(encoder, records, experiment, store, cache=cache)
    assert is_cached()

    with other_weights(encoder):
        assert not is_cached()
    assert not is_cached(records=records[1:])
    evaluate = experiment.evaluate.model_copy(update={"clips": 2})
    assert not is_cached(experiment=experiment.model_copy(update={"evaluate": evaluate}))
    data = experiment.data.model_copy(update={"stride": 2})
    assert not is_cached(experiment=experiment.model_copy(update={"data": data}))
    # A file that was replaced under the same name.
    (tmp_path / "broken.mp4").write_text("still not a video")
    assert not is_cached()


def test_single_views_are_extracted_if_only_means_are_cached(records, encoder, experiment, store, tmp_path):
    cache = FeatureStore(tmp_path / "features")
    extract_features(encoder, records, experiment, store, cache=cache)

    assert cache.find(encoder, records, experiment, with_views=True) is None
    features = extract_features(encoder, records, experiment, store, cache=cache, keep_views=True)

    assert features.views["P5"].shape == (3, 3, 8)
    assert cache.find(encoder, records, experiment, with_views=True).views.keys() == features.views.keys()


def test_a_damaged_file_is_extracted_again(records, encoder, experiment, store, tmp_path):
    cache = FeatureStore(tmp_path / "features")
    first = extract_features(encoder, records, experiment, store, cache=cache)
    (file,) = cache.folder.iterdir()
    file.write_bytes(file.read_bytes()[:100])

    assert cache.find(encoder, records, experiment) is None
    again = extract_features(encoder, records, experiment, store, cache=cache)

    np.testing.assert_array_equal(again.arrays["P5"], first.arrays["P5"])
    assert cache.find(encoder, records, experiment) is not None


def test_a_folder_that_cannot_be_written_is_named(records, encoder, experiment, store, tmp_path):
    (tmp_path / "features").write_text("a file")

    with pytest.raises(RunError, match=r"features/.*\.npz cannot be written \(.*\)\. Free some space"):
        extract_features(encoder, records, experiment, store, cache=FeatureStore(tmp_path / "features"))
