import json
import shutil

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest

from hdc_keras import HDC, R3D, __version__
from hdc_keras.config import Experiment, validate
from hdc_keras.data.from_experiment import load_undivided_videos
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.preparing import Part
from hdc_keras.data.records import StoredVideo, VideoRecord, read_records
from hdc_keras.errors import ConfigError, DataError, RunError
from hdc_keras.features.embed_job import embed
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


@pytest.fixture(scope="module", autouse=True)
def small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hdc_keras.features.extraction.VIDEOS_PER_PART", 3)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with random weights."""
    keras.utils.set_random_seed(0)
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "run")
    run.create(EXPERIMENT)
    model = HDC(R3D([4, 4, 6, 8], [1, 1, 1, 1], name="r3d_tiny"), EXPERIMENT.views, EXPERIMENT.contrast)
    run.checkpoints.keep_best(run.checkpoints.save(model, 1, 3), "loss", 1.0)
    return run


@pytest.fixture(scope="module")
def records(shapes_folder):
    return sorted(read_records(shapes_folder)[:10], key=lambda record: record.video_id)


@pytest.fixture(scope="module")
def uninterrupted(run, records, tmp_path_factory):
    """The table of ten videos in parts of three, the outcome of the job, and the progress that it reported."""
    file, reported = tmp_path_factory.mktemp("uninterrupted") / "t.parquet", []
    outcome = embed(
        run,
        EXPERIMENT,
        records[::-1],
        file,
        store=file.with_name("features"),
        progress=lambda *numbers: reported.append(numbers),
    )
    return file, outcome, reported


def test_rows_are_complete_sorted_by_id_and_equal_to_extract_features(run, records, uninterrupted):
    file, outcome, reported = uninterrupted

    assert (outcome.asked, outcome.rows, outcome.failed) == (10, 10, [])
    table = pq.read_table(file)
    assert table["video_id"].to_pylist() == sorted(record.video_id for record in records)
    assert table["label_motion"].to_pylist() == [record.labels["motion"] for record in records]
    assert reported[0] == (0, 10, 0) and reported[-1] == (10, 10, 0) and reported == sorted(reported)
    assert sorted(path.name for path in file.parent.iterdir()) == ["features", "t.parquet"]

    encoder = ClipEncoder(run.checkpoints.load()[0], (20, 20))
    expected = extract_features(encoder, records, EXPERIMENT, FrameStore((20, 20), 0.1)).arrays
    assert outcome.widths == {name: array.shape[1] for name, array in expected.items()}
    for name, array in expected.items():
        found = np.stack(table[name].to_numpy())
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, array, atol=1e-5, err_msg=name)


def test_the_same_call_on_a_complete_file_does_nothing(run, records, uninterrupted, tmp_path):
    file, outcome, _ = uninterrupted
    content = file.read_bytes()

    assert embed(run, EXPERIMENT, records, file, store=tmp_path / "features") == outcome
    assert file.read_bytes() == content and not (tmp_path / "features").exists()
    with pytest.raises(RunError, match="already exists and was not changed"):
        embed(run, EXPERIMENT, records[1:], file, store=tmp_path / "features")


def test_the_metadata_record_what_the_file_was_made_from(run, uninterrupted):
    metadata = json.loads(pq.read_schema(uninterrupted[0]).metadata[b"hdc_keras"])

    expected = {"run": str(run.path), "checkpoint": "step-000000001.keras", "hdc_keras_version": __version__}
    expected |= {"clips": 3, "frames": 4, "stride": 1, "decode_size": [20, 20], "view_size": 16, "videos": 10}
    assert {name: metadata[name] for name in expected} == expected
    assert metadata["weights_sha256"] == digest(run.checkpoints.files()[-1])


def interrupt_after(videos):
    """A progress function that interrupts the job in the first part after that number of videos."""

    def progress(done, total, failed):
        if done > videos:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_job_continues_with_the_missing_parts(run, records, uninterrupted, tmp_path):
    file, reported = tmp_path / "t.parquet", []
    kept = {"store": tmp_path / "features"}

    with pytest.raises(KeyboardInterrupt):
        embed(run, EXPERIMENT, records, file, progress=interrupt_after(6), **kept)
    assert not file.exists()
    embed(run, EXPERIMENT, records, file, progress=lambda *numbers: reported.append(numbers), **kept)

    assert reported[0] == (6, 10, 0) and reported[-1] == (10, 10, 0)
    assert file.read_bytes() == uninterrupted[0].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "t.parquet"]


def test_parts_are_extracted_apart_and_joined_by_a_last_call(run, records, uninterrupted, tmp_path):
    file, kept = tmp_path / "t.parquet", {"store": tmp_path / "features"}

    assert embed(run, EXPERIMENT, records, file, part=Part(2, 2), **kept) is None
    assert embed(run, EXPERIMENT, records, file, part=Part(1, 2), **kept) is None
    assert not file.exists()
    reported = []
    embed(run, EXPERIMENT, records, file, progress=lambda *numbers: reported.append(numbers), **kept)

    assert reported == [(10, 10, 0)] and file.read_bytes() == uninterrupted[0].read_bytes()


def test_features_of_other_weights_or_settings_are_never_mixed(run, records, uninterrupted, tmp_path):
    changed_run = RunDirectory(shutil.copytree(run.path, tmp_path / "run"))
    file = tmp_path / "t.parquet"
    with pytest.raises(KeyboardInterrupt):
        embed(changed_run, EXPERIMENT, records, file, progress=interrupt_after(3))
    model = changed_run.checkpoints.load()[0]
    model.objective.heads["P2_spatial"].projection.bias.assign_add(np.ones(8))
    changed_run.checkpoints.save(model, 2, 3)
    reported = []

    embed(changed_run, EXPERIMENT, records, file, progress=lambda *numbers: reported.append(numbers))

    assert reported[0] == (0, 10, 0)
    new, old = (np.stack(pq.read_table(each)["P2_spatial"].to_numpy()) for each in (file, uninterrupted[0]))
    assert (np.abs(new - old).max(axis=1) > 1e-3).all()


def test_another_network_than_the_pretrained_one_is_refused(run, records, tmp_path):
    other = with_settings(model={"backbone": "r3d18"})

    with pytest.raises(ConfigError, match=r"model\.backbone: .* was pretrained with r3d_tiny.* Received: r3d18"):
        embed(run, other, records, tmp_path / "t.parquet")


def test_the_best_checkpoint_is_used_on_request(run, records, tmp_path):
    with_newer = RunDirectory(shutil.copytree(run.path, tmp_path / "run"))
    shutil.copy(with_newer.checkpoints.files()[0], with_newer.checkpoints.folder / "step-000000002.keras")

    assert embed(with_newer, EXPERIMENT, records[:1], tmp_path / "newest.parquet").checkpoint == "step-000000002.keras"
    assert embed(with_newer, EXPERIMENT, records[:1], tmp_path / "b.parquet", best=True).checkpoint == "best.keras"


def test_failed_videos_are_listed_by_id_with_their_file_or_position_in_a_shard(run, records, tmp_path):
    (tmp_path / "broken.mp4").write_text("not a video")
    broken = str(tmp_path / "broken.mp4")
    bad = [
        VideoRecord(broken, "broken"),
        VideoRecord(broken, "again"),
        VideoRecord("gone.mp4", "stored", stored=StoredVideo(str(tmp_path / "no.tfrecord"), 5, 10, 24, 25.0)),
    ]

    outcome = embed(run, EXPERIMENT, [*records[:4], *bad], tmp_path / "t.parquet")

    assert (outcome.asked, outcome.rows) == (7, 4)
    failed = {failure["video_id"]: failure for failure in outcome.failed}
    assert set(failed) == {"broken", "again", "stored"} and failed["again"]["file"] == broken
    assert "Invalid data" in failed["again"]["cause"]
    assert failed["stored"]["file"] == "gone.mp4" and "no.tfrecord, byte 5: " in failed["stored"]["cause"]
    assert len((tmp_path / "t.failures.csv").read_text().splitlines()) == 4


def test_too_many_failures_end_the_job_and_a_higher_limit_resumes_it(run, records, tmp_path):
    (tmp_path / "broken.mp4").write_text("not a video")
    videos = [*records[:4], VideoRecord(str(tmp_path / "broken.mp4"), "z_broken")]
    strict, reported = with_settings(data={"max_failed_share": 0.1}), []

    with pytest.raises(DataError, match=r"1 of 5 videos cannot be decoded, more than `data\.max_failed_share`"):
        embed(run, strict, videos, tmp_path / "t.parquet")
    outcome = embed(run, EXPERIMENT, videos, tmp_path / "t.parquet", progress=lambda *n: reported.append(n))

    assert reported[0] == (4, 5, 0) and (outcome.rows, len(outcome.failed)) == (4, 1)


def test_every_video_of_a_set_is_read_with_or_without_labels(run, class_folder, tmp_path):
    videos = load_undivided_videos(with_settings(data={"path": str(class_folder)})).records
    assert len(videos) == 8 and {video.split for video in videos} == {None}

    unlabelled = load_undivided_videos(with_settings(data={"path": str(class_folder / "across")})).records
    outcome = embed(run, EXPERIMENT, unlabelled, tmp_path / "t.parquet")
    assert outcome.rows == 4 and pq.read_table(tmp_path / "t.parquet")["label"].null_count == 4

    # A class with one video is too small to hold any out, but embedding does not hold out videos.
    for number in range(1, 4):
        (class_folder / "across" / f"{number}.mp4").unlink()
    assert len(load_undivided_videos(with_settings(data={"path": str(class_folder)})).records) == 5


def test_limits_and_remote_sets_are_refused(class_folder_once):
    with pytest.raises(ConfigError, match=r"data\.limit cannot be used with `embed`"):
        load_undivided_videos(with_settings(data={"path": str(class_folder_once), "limit": 2}))
    with pytest.raises(DataError, match="remote"):
        load_undivided_videos(with_settings(data={"path": f"file://{class_folder_once}"}))
