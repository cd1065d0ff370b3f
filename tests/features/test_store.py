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


@pytest.fixture
def opened(encoder, experiment, tmp_path):
    """Opens the store anew, as another process would."""

    def open_store(experiment=experiment, **views):
        return FeatureStore(tmp_path / "features", encoder, experiment, **views)

    return open_store


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


def test_kept_features_are_returned_in_any_order_of_videos(records, encoder, experiment, store, opened):
    views = {"needs_views": True}
    first = extract_features(encoder, records, experiment, store, store=opened(**views))
    reported = []

    with without_encoding(encoder):
        again = extract_features(
            encoder, records, experiment, store, lambda *done: reported.append(done), opened(**views)
        )
        reverse = extract_features(encoder, records[::-1], experiment, store, store=opened()).select(records[::-1])

    assert reported == [(4, 4)]
    assert again.causes == first.causes and list(again.failed) == ["broken"]
    assert [record.video_id for record in again.records] == [record.video_id for record in first.records]
    assert [record.video_id for record in reverse.records] == [record.video_id for record in first.records][::-1]
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
        np.testing.assert_array_equal(again.views[name], first.views[name])
        np.testing.assert_array_equal(reverse.arrays[name], array[::-1])


def test_other_weights_videos_or_clips_are_extracted_again(records, encoder, experiment, store, opened, tmp_path):
    def kept(experiment=experiment):
        return [opened(experiment).has(record) for record in records]

    extract_features(encoder, records, experiment, store, store=opened())
    assert kept() == [True] * 4

    with other_weights(encoder):
        assert kept() == [False] * 4
    evaluate = experiment.evaluate.model_copy(update={"clips": 2})
    assert not any(kept(experiment.model_copy(update={"evaluate": evaluate})))
    data = experiment.data.model_copy(update={"stride": 2})
    assert not any(kept(experiment.model_copy(update={"data": data})))
    # A file that was replaced under the same name.
    (tmp_path / "broken.mp4").write_text("still not a video")
    assert kept() == [True, True, True, False]


def test_a_new_video_costs_one_video(shapes_folder, encoder, experiment, store, opened, monkeypatch):
    records = read_records(shapes_folder)[:9]
    first = extract_features(encoder, records[:8], experiment, store, store=opened())
    decoded = []
    clips = store.clips
    monkeypatch.setattr(store, "clips", lambda record, indices: decoded.append(record) or clips(record, indices))

    features = extract_features(encoder, records, experiment, store, store=opened())

    assert decoded == records[8:]
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(features.select(records[:8]).arrays[name], array)


def test_single_views_are_extracted_only_if_they_are_needed_and_missing(records, encoder, experiment, store, opened):
    extract_features(encoder, records, experiment, store, store=opened())
    assert not opened(needs_views=True).has(records[0])

    features = extract_features(encoder, records, experiment, store, store=opened(needs_views=True))

    assert features.views["P5"].shape == (3, 3, 8)
    assert opened(needs_views=True).read(records).views.keys() == features.views.keys()
    assert opened(keeps_views=True).read(records).views == {}  # views that nobody needs are not read


def test_a_damaged_part_is_extracted_again(records, encoder, experiment, store, opened):
    first = extract_features(encoder, records, experiment, store, store=opened())
    (file,) = opened().folder.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])

    assert not opened().has(records[0])
    again = extract_features(encoder, records, experiment, store, store=opened())

    np.testing.assert_array_equal(again.arrays["P5"], first.arrays["P5"])
    assert opened().has(records[0])


def test_a_part_with_a_flipped_byte_is_named(records, encoder, experiment, store, opened):
    extract_features(encoder, records, experiment, store, store=opened())
    (file,) = opened().folder.glob("*.npz")
    content = bytearray(file.read_bytes())
    content[-2000] ^= 255  # in the last array, or beside it
    file.write_bytes(content)

    with pytest.raises(RunError, match=r"\.npz is damaged \(.*\)\. Delete it and repeat the command"):
        opened().read(records)


def test_a_folder_that_cannot_be_written_is_named(records, encoder, experiment, store, opened, tmp_path):
    (tmp_path / "features").write_text("a file")

    with pytest.raises(RunError, match=r"features.* cannot be written \(.*\)\. Make the folder writable"):
        extract_features(encoder, records, experiment, store, store=opened())
