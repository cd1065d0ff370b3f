import json
import shutil

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest

from hdc_keras import HDC, R3D, __version__
from hdc_keras.config import Experiment, validate
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import StoredVideo, VideoRecord, read_records
from hdc_keras.errors import ConfigError, DataError, RunError
from hdc_keras.features.embed_job import embed, read_videos
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.files import digest
from hdc_keras.runs.directory import RunDirectory

SETTINGS = {
    "data": {"frames": 4, "stride": 1, "decode_size": (20, 20), "max_failed_share": 0.5},
    "views": {"size": 16},
    "model": {"backbone": "r3d_tiny"},
    "contrast": {"embedding_dim": 8},
    "evaluate": {"clips": 3, "batch_size": 4},
}
EXPERIMENT = validate(Experiment, SETTINGS, "test")


def with_settings(**sections):
    return validate(Experiment, {k: v | sections.get(k, {}) for k, v in SETTINGS.items()}, "test")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with weights that nothing trained."""
    keras.utils.set_random_seed(0)
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "run")
    run.create(EXPERIMENT)
    model = HDC(R3D([4, 4, 6, 8], [1, 1, 1, 1], name="r3d_tiny"), EXPERIMENT.views, EXPERIMENT.contrast)
    run.checkpoints.keep_best(run.checkpoints.save(model, 1, 3), "loss", 1.0)
    return run


@pytest.fixture(scope="module")
def records(shapes_folder):
    return sorted(read_records(shapes_folder)[:10], key=lambda record: record.video_id)


def columns_of(file):
    table = pq.read_table(file)
    return {name: np.stack(table[name].to_numpy()) for name in table.column_names if name[0] in "Pe"}


def test_rows_are_complete_in_order_and_the_means_of_extract_features(run, records, tmp_path):
    told = []

    outcome = embed(
        run,
        EXPERIMENT,
        records[::-1],
        tmp_path / "t.parquet",
        videos_per_part=4,
        progress=lambda *numbers: told.append(numbers),
    )

    assert (outcome.asked, outcome.rows, outcome.failed) == (10, 10, [])
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["video_id"].to_pylist() == sorted(record.video_id for record in records)
    assert table["label_motion"].to_pylist() == [record.labels["motion"] for record in records]
    assert told[0] == (0, 10, 0) and told[-1] == (10, 10, 0) and told == sorted(told)

    encoder = ClipEncoder(run.checkpoints.load()[0], (20, 20))
    expected = extract_features(encoder, records, EXPERIMENT, FrameStore((20, 20), 0.1)).arrays
    found = columns_of(tmp_path / "t.parquet")
    assert set(found) == set(expected) and outcome.widths == {name: a.shape[1] for name, a in expected.items()}
    for name in expected:
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_the_file_says_what_it_was_made_from(run, records, tmp_path):
    embed(run, EXPERIMENT, records[:2], tmp_path / "t.parquet")

    note = json.loads(pq.read_schema(tmp_path / "t.parquet").metadata[b"hdc_keras"])
    expected = {"run": str(run.path), "checkpoint": "step-000000001.keras", "hdc_keras_version": __version__}
    expected |= {"clips": 3, "frames": 4, "stride": 1, "decode_size": [20, 20], "view_size": 16, "videos": 2}
    assert {name: note[name] for name in expected} == expected
    assert note["weights_sha256"] == digest(run.checkpoints.files()[-1])


def stopping_after(videos, told):
    """A progress that is interrupted in the part after so many videos."""

    def progress(done, total, failed):
        told.append(done)
        if done > videos:
            raise KeyboardInterrupt

    return progress


def test_stopped_and_begun_again_it_makes_only_what_is_missing(run, records, tmp_path):
    first, second = [], []
    embed(run, EXPERIMENT, records, tmp_path / "calm.parquet", videos_per_part=3)

    with pytest.raises(KeyboardInterrupt):
        embed(run, EXPERIMENT, records, tmp_path / "t.parquet", videos_per_part=3, progress=stopping_after(6, first))
    assert not (tmp_path / "t.parquet").exists()
    embed(
        run, EXPERIMENT, records, tmp_path / "t.parquet", videos_per_part=3, progress=lambda *told: second.append(told)
    )

    assert first[0] == 0 and second[0] == (6, 10, 0)
    assert (tmp_path / "t.parquet").read_bytes() == (tmp_path / "calm.parquet").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"t.parquet", "calm.parquet"}


def test_parts_of_other_weights_are_refused(run, records, tmp_path):
    own = RunDirectory(tmp_path / "run")
    shutil.copytree(run.path, own.path)

    with pytest.raises(KeyboardInterrupt):
        embed(own, EXPERIMENT, records, tmp_path / "t.parquet", videos_per_part=3, progress=stopping_after(3, []))
    model = own.checkpoints.load()[0]
    model.objective.heads["P2_spatial"].projection.bias.assign_add(np.ones(8))
    own.checkpoints.save(model, 2, 3)

    with pytest.raises(RunError, match=r"checkpoint: step-000000001\.keras there, step-000000002\.keras now"):
        embed(own, EXPERIMENT, records, tmp_path / "t.parquet", videos_per_part=3)
    with pytest.raises(RunError, match="clips: 3 there, 2 now"):
        embed(own, with_settings(evaluate={"clips": 2}), records, tmp_path / "t.parquet", videos_per_part=3)
    # The best checkpoint still is the one of before, under another name.
    assert embed(own, EXPERIMENT, records[:3], tmp_path / "best.parquet", best=True).checkpoint == "best.keras"


def test_videos_that_fail_are_named_by_their_file_or_their_place_in_a_shard(run, records, tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    broken = str(tmp_path / "broken.mp4")
    bad = [VideoRecord(broken, "broken"), VideoRecord(broken, "again"), VideoRecord("gone.mp4", "stored")]
    bad[2] = VideoRecord("gone.mp4", "stored", stored=StoredVideo(str(tmp_path / "no.tfrecord"), 5, 10, 24, 25.0))

    outcome = embed(run, EXPERIMENT, [*records[:4], *bad], tmp_path / "t.parquet", videos_per_part=2)

    assert (outcome.asked, outcome.rows) == (7, 4)
    named = {failure["video_id"]: failure for failure in outcome.failed}
    assert set(named) == {"broken", "again", "stored"} and named["again"]["file"] == broken
    assert "Invalid data" in named["again"]["cause"]
    assert named["stored"]["file"] == "gone.mp4" and "no.tfrecord, byte 5: " in named["stored"]["cause"]
    assert len((tmp_path / "t.failures.csv").read_text().splitlines()) == 4


def test_when_too_many_fail_it_ends_and_goes_on_once_that_is_allowed(run, records, tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    videos = [*records[:4], VideoRecord(str(tmp_path / "broken.mp4"), "z_broken")]
    strict, seen = with_settings(data={"max_failed_share": 0.1}), []

    with pytest.raises(DataError, match=r"1 of 5 videos cannot be decoded, more than `data\.max_failed_share`"):
        embed(run, strict, videos, tmp_path / "t.parquet", videos_per_part=2)
    outcome = embed(
        run, EXPERIMENT, videos, tmp_path / "t.parquet", videos_per_part=2, progress=lambda *n: seen.append(n)
    )

    assert seen[0] == (4, 5, 0) and (outcome.rows, len(outcome.failed)) == (4, 1)


def test_every_video_of_a_set_is_read_labelled_or_not_with_the_split_that_the_set_gives_it(run, class_folder, tmp_path):
    videos = read_videos(with_settings(data={"path": str(class_folder)})).records
    assert len(videos) == 8 and {video.split for video in videos} == {None}

    loose = read_videos(with_settings(data={"path": str(class_folder / "across")})).records
    outcome = embed(run, EXPERIMENT, loose, tmp_path / "t.parquet")
    assert outcome.rows == 4 and pq.read_table(tmp_path / "t.parquet")["label"].null_count == 4

    # One video of a class: too few to hold any out, which nobody asked for.
    for number in range(1, 4):
        (class_folder / "across" / f"{number}.mp4").unlink()
    assert len(read_videos(with_settings(data={"path": str(class_folder)})).records) == 5

    with pytest.raises(ConfigError, match=r"data\.limit: every video of a set is embedded"):
        read_videos(with_settings(data={"path": str(class_folder), "limit": 2}))
    with pytest.raises(DataError, match="remote videos are prepared before they are read"):
        read_videos(with_settings(data={"path": f"file://{class_folder}"}))
