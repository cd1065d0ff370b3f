from dataclasses import replace

import numpy as np
import pytest

from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.errors import DataError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features


def broken_videos(folder, count):
    for number in range(count):
        (folder / f"broken{number}.mp4").write_text("not a video")
    return [VideoRecord(str(folder / f"broken{number}.mp4"), f"broken{number}") for number in range(count)]


def test_every_video_is_in_the_result_or_listed_as_failed(shapes_folder, encoder, experiment, store, tmp_path):
    good, broken = read_records(shapes_folder)[:34], broken_videos(tmp_path, 3)
    records = [*good[:10], broken[0], *good[10:30], *broken[1:], *good[30:]]
    reported = []

    features = extract_features(encoder, records, experiment, store, lambda done, total: reported.append((done, total)))

    assert features.asked == 37 and len(features.records) == 34
    assert [record.video_id for record in features.records] == [record.video_id for record in good]
    assert sorted(features.failed) == [record.path for record in broken]
    assert all(array.shape[0] == 34 and np.isfinite(array).all() for array in features.arrays.values())
    assert reported == [(8, 37), (16, 37), (24, 37), (32, 37), (37, 37)]


def test_too_many_broken_videos_are_an_error(encoder, experiment, store, tmp_path):
    with pytest.raises(DataError, match=r"of 3 videos cannot be decoded, more than `data\.max_failed_share` \(0\.5\)"):
        extract_features(encoder, broken_videos(tmp_path, 3), experiment, store)


def test_features_are_averaged_over_clips_and_independent_of_the_batch(shapes_folder, encoder, experiment, store):
    records = read_records(shapes_folder)[:10]

    batched = extract_features(encoder, records, experiment, store, keep_views=True)
    alone = extract_features(encoder, records[7:8], experiment, store)

    for name in ("P2", "P5", "P3_spatial", "embedding"):
        assert batched.views[name].shape[:2] == (10, 3)
        np.testing.assert_allclose(batched.arrays[name], batched.views[name].mean(axis=1), atol=1e-6)
        np.testing.assert_allclose(batched.arrays[name][7:8], alone.arrays[name], atol=1e-5)
    clips = batched.views["P5"]
    assert np.abs(clips[:, 0] - clips[:, 2]).max() > 1e-4  # the clips differ


def test_three_crops_are_evenly_spaced_views_of_each_clip(shapes_folder, small_model, experiment):
    records, store = read_records(shapes_folder)[:2], FrameStore((20, 32), 0.1)
    wide = experiment.model_copy(update={"data": experiment.data.model_copy(update={"decode_size": (20, 32)})})

    three = extract_features(ClipEncoder(small_model, (20, 32), crops=3), records, wide, store, keep_views=True)
    one = extract_features(ClipEncoder(small_model, (20, 32)), records, wide, store, keep_views=True)

    assert three.views["P5"].shape == (2, 9, 8) and one.views["P5"].shape == (2, 3, 8)
    # The views of a clip follow each other, and the second of its three crops is the centre crop.
    np.testing.assert_allclose(three.views["P5"][:, 1::3], one.views["P5"], atol=1e-5)
    assert np.abs(three.views["P5"][:, 0::3] - three.views["P5"][:, 2::3]).max() > 1e-4


def test_videos_that_share_one_broken_file_count_one_by_one(shapes_folder, encoder, experiment, store, tmp_path):
    good, (broken,) = read_records(shapes_folder)[:2], broken_videos(tmp_path, 1)
    twins = [broken, replace(broken, video_id="again")]

    features = extract_features(encoder, [*good, *twins], experiment, store)

    assert features.records == good and list(features.failed) == [broken.path]
    with pytest.raises(DataError, match="2 of 3 videos cannot be decoded"):
        extract_features(encoder, [good[0], *twins], experiment, store)
