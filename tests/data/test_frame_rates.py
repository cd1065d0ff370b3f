"""`data.fps`: clips of one frame rate from videos of any."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hdc_keras.config import Experiment
from hdc_keras.data.from_experiment import frame_store
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowBatches, WindowLoader
from hdc_keras.data.pipeline import windows_dataset
from hdc_keras.data.preparing import prepare
from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.data.sampling import WindowSpec
from hdc_keras.data.shards import read_prepared
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import DataError, VideoDecodeError
from hdc_keras.features.store import FeatureStore
from hdc_keras.pretrained import load
from tests.conftest import frame_numbers, numbered_frames

SIZE = (48, 64)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of 3 s with 10, 5 and 8 frames a second."""
    folder = tmp_path_factory.mktemp("rates")
    for rate in (10, 5, 8):
        write_video(folder / f"{rate}.mp4", numbered_frames(3 * rate, SIZE), rate=rate)
    return {int(record.video_id.removesuffix(".mp4")): record for record in read_records(folder)}


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare([*videos.values()], folder, size=SIZE, processes=1)
    return {int(record.video_id.removesuffix(".mp4")): record for record in read_prepared(folder)[0]}


def numbers_of(record, fps, budget=0.0):
    store = FrameStore(SIZE, budget, fps=fps)
    return frame_numbers(store.clips(record, np.arange(store.count(record)))).tolist()


@pytest.mark.parametrize("budget", [0.0, 1.0])
@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        (10, 5, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28]),
        (10, 10, list(range(30))),
        (5, 10, [number // 2 for number in range(30)]),
        (8, 4, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]),
        (8, 0.1, [0]),
    ],
)
def test_files_and_prepared_videos_are_resampled_alike(videos, prepared, rate, fps, expected, budget):
    assert numbers_of(videos[rate], fps, budget) == expected
    assert numbers_of(prepared[rate], fps, budget) == expected


def test_a_part_of_a_file_is_resampled(videos):
    part = replace(videos[10], video_id="part", segment=(1.0, 2.0))

    assert numbers_of(part, 5) == [10, 12, 14, 16, 18]
    assert numbers_of(part, None) == list(range(10, 20))


@pytest.mark.parametrize("kind", ["files", "prepared"])
def test_tf_data_and_threads_give_the_same_batches(videos, prepared, kind):
    records = [*(videos if kind == "files" else prepared).values()]
    loader = WindowLoader(records, WindowSpec(4, 1), FrameStore(SIZE, 0.0, fps=5), DecodeFailures(3, 0.1), 3, seed=0)

    (in_graph,) = windows_dataset(loader).take(1)

    np.testing.assert_array_equal(frame_numbers(in_graph.numpy()), frame_numbers(WindowBatches(loader)[0]))
    # Every clip has 5 frames a second, whatever its video has.
    rates = {int(record.video_id.removesuffix(".mp4")): record for record in records}
    allowed = {tuple(numbers_of(record, 5)[first : first + 4]) for record in rates.values() for first in range(12)}
    assert {tuple(clip) for clip in frame_numbers(in_graph.numpy()).reshape(-1, 4).tolist()} <= allowed


def test_videos_without_a_frame_rate_are_named(prepared, tmp_path):
    unknown = replace(prepared[10], stored=replace(prepared[10].stored, rate=0.0))
    records, failures = [unknown, prepared[5]], DecodeFailures(2, 0.1)
    loader = WindowLoader(records, WindowSpec(2), FrameStore(SIZE, 0.0, fps=5), failures, 2, seed=0)
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (64, 48)).save(frames / "1.jpg")

    with pytest.raises(VideoDecodeError, match=r"has no frame rate, which `data\.fps` needs"):
        FrameStore(SIZE, 0.0, fps=5).count(unknown)
    with pytest.raises(DataError, match=r"Leave `data\.fps` empty, or prepare the set with --fps"):
        windows_dataset(loader)
    with pytest.raises(VideoDecodeError, match="neither timestamps nor a frame rate"):
        FrameStore(SIZE, 0.0, fps=5).count(VideoRecord(str(frames), "frames"))


def test_the_config_reaches_the_store_and_features_of_other_rates_are_not_mixed(tmp_path, smoke_run):
    encoder = load(smoke_run[0])
    folders = set()
    for fps in (None, 5.0, 10.0):
        experiment = Experiment.model_validate({"data": {"fps": fps}})
        assert frame_store(experiment).fps == fps
        folders.add(FeatureStore(tmp_path, encoder, experiment).folder)

    assert len(folders) == 3
