from dataclasses import replace

import numpy as np
import pytest

from hdc_keras.data.loading import DecodeFailures, FrameStore
from hdc_keras.data.preparing import Part
from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.errors import DataError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import Extraction, encode_videos, extract_features
from hdc_keras.features.store import FeatureStore
from hdc_keras.locks import try_exclusive


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
    assert sorted(features.causes) == [record.path for record in broken]
    assert sorted(features.failed) == [record.video_id for record in broken]
    assert all(array.shape[0] == 34 and np.isfinite(array).all() for array in features.arrays.values())
    assert reported == [(8, 37), (16, 37), (24, 37), (32, 37), (37, 37)]


def test_too_many_broken_videos_are_an_error(encoder, experiment, store, tmp_path):
    with pytest.raises(DataError, match=r"of 3 videos cannot be decoded, more than `data\.max_failed_share` \(0\.5\)"):
        extract_features(encoder, broken_videos(tmp_path, 3), experiment, store)


def test_features_are_averaged_over_clips_and_independent_of_the_batch(shapes_folder, encoder, experiment, store):
    records = read_records(shapes_folder)[:10]

    batched = encode_videos(encoder, records, experiment, store, DecodeFailures(10, 0), keep_views=True)
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

    encoders = [ClipEncoder(small_model, (20, 32), crops=crops) for crops in (3, 1)]
    three, one = (encode_videos(each, records, wide, store, DecodeFailures(2, 0), keep_views=True) for each in encoders)

    assert three.views["P5"].shape == (2, 9, 8) and one.views["P5"].shape == (2, 3, 8)
    # The views of a clip follow each other, and the second of its three crops is the centre crop.
    np.testing.assert_allclose(three.views["P5"][:, 1::3], one.views["P5"], atol=1e-5)
    assert np.abs(three.views["P5"][:, 0::3] - three.views["P5"][:, 2::3]).max() > 1e-4


def test_videos_that_share_one_broken_file_count_one_by_one(shapes_folder, encoder, experiment, store, tmp_path):
    good, (broken,) = read_records(shapes_folder)[:2], broken_videos(tmp_path, 1)
    twins = [broken, replace(broken, video_id="again")]

    features = extract_features(encoder, [*good, *twins], experiment, store)

    assert features.records == good and list(features.causes) == [broken.path]
    assert sorted(features.failed) == ["again", "broken0"]
    with pytest.raises(DataError, match="2 of 3 videos cannot be decoded"):
        extract_features(encoder, [good[0], *twins], experiment, store)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("hdc_keras.features.extraction.VIDEOS_PER_PART", 4)


def test_two_processes_extract_a_part_each(shapes_folder, encoder, experiment, store, small_parts, tmp_path):
    records = read_records(shapes_folder)[:10]

    def extraction():
        return Extraction(encoder, records, experiment, store, FeatureStore(tmp_path / "features", encoder, experiment))

    first, second, later = extraction(), extraction(), extraction()
    first.run(Part(1, 2))
    with pytest.raises(DataError, match="the features of 4 of 10 videos have not been extracted"):
        first.read()
    second.run(Part(2, 2))

    later.run()  # it was opened before the others had written anything, and finds their parts
    found = later.read()
    expected = extract_features(encoder, sorted(records, key=lambda record: record.video_id), experiment, store)
    assert len(list(later.store.folder.glob("*.npz"))) == 3
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[name], array, atol=1e-5)


def test_an_interrupted_extraction_loses_one_part(shapes_folder, encoder, experiment, store, small_parts, tmp_path):
    records = sorted(read_records(shapes_folder)[:10], key=lambda record: record.video_id)
    decoded = []
    clips = store.clips
    store.clips = lambda record, indices: decoded.append(record.video_id) or clips(record, indices)

    def run(progress=None):
        kept = FeatureStore(tmp_path / "features", encoder, experiment)
        return extract_features(encoder, records, experiment, store, progress, kept)

    def interrupt(done, _):
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    decoded.clear()
    reported = []
    run(lambda *done: reported.append(done))

    assert sorted(decoded) == [record.video_id for record in records[8:]]
    assert reported[0] == (8, 10) and reported[-1] == (10, 10)


def test_a_part_that_another_process_extracts_is_awaited(
    shapes_folder, encoder, experiment, store, small_parts, tmp_path, monkeypatch
):
    records = read_records(shapes_folder)[:6]

    def opened():
        return FeatureStore(tmp_path / "features", encoder, experiment)

    mine = Extraction(encoder, records, experiment, store, opened())
    other = Extraction(encoder, records, experiment, store, opened())
    waited = []

    def sleep(seconds):  # meanwhile, the other process finishes its part
        waited.append(seconds)
        lock.__exit__(None, None, None)
        assert other.run_part(0)

    monkeypatch.setattr("hdc_keras.engines.here.time.sleep", sleep)
    lock = try_exclusive(mine.store.file_of(mine.plan()[0]))
    assert lock.__enter__()
    mine.run()

    assert len(waited) == 1 and len(mine.read().records) == 6


def test_failures_of_all_parts_are_counted_together(shapes_folder, encoder, store, experiment, small_parts, tmp_path):
    good, broken = read_records(shapes_folder)[:6], broken_videos(tmp_path, 2)
    strict = experiment.model_copy(update={"data": experiment.data.model_copy(update={"max_failed_share": 0.2})})
    records = [
        replace(record, video_id=f"{n}") for n, record in enumerate([*good[:3], broken[0], *good[3:], broken[1]])
    ]

    def run(experiment, part=Part()):
        kept = FeatureStore(tmp_path / "features", encoder, experiment)
        extraction = Extraction(encoder, records, experiment, store, kept)
        extraction.run(part)
        return extraction.read()

    message = r"2 of 8 videos cannot be decoded, more than `data\.max_failed_share`"
    with pytest.raises(DataError, match=message):
        run(strict)
    assert len(run(experiment).records) == 6  # a higher limit goes on
    with pytest.raises(DataError, match=message):
        run(strict)


def test_a_clip_without_frames_is_refused(encoder):
    with pytest.raises(ValueError, match="with one frame or more"):
        encoder(np.zeros((1, 0, 20, 20, 3), np.uint8))
