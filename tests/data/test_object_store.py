"""Prepared sets in a store that speaks S3: a real server, in a process of its own."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil
import pytest
from fsspec.core import url_to_fs
from PIL import Image

from hdc_keras.config import DataConfig
from hdc_keras.data import preparing, shards, storage
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowBatches, WindowLoader
from hdc_keras.data.preparing import Part, prepare, verify
from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.data.sampling import WindowSpec
from hdc_keras.data.shards import EncodedVideo, read_frames, read_prepared, stored_video, write_shard
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import ConfigError, DataError, RunError
from tests.conftest import call_command, numbered_frames, run_command
from tests.object_store import running_store

# How often `prepare` is killed.
KILLS = int(os.environ.get("HDC_KERAS_KILLS", "2"))
OPTIONS = {"size": (32, 48), "videos_per_shard": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with running_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def bucket(store, request):
    """The URL of a new bucket."""
    return store.bucket("".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:60].strip("-"))


@pytest.fixture(scope="session")
def videos(once):
    """Seven numbered videos, and one file that is not a video."""

    def make(folder):
        for number in range(7):
            write_video(folder / f"{number}.mp4", numbered_frames(12 + number, (32, 48)))
        (folder / "bad.mp4").write_text("not a video")

    return read_records(once("videos-for-the-store", make))


@pytest.fixture(scope="session")
def local(once, videos):
    """The same set prepared in a folder; read-only."""
    return (
        once("prepared-for-the-store", lambda folder: prepare(videos, folder / "set", processes=2, **OPTIONS)) / "set"
    )


@pytest.fixture
def uploaded(store, bucket, local):
    """The URL of a copy of the prepared set."""
    store.files.put(f"{local}/", f"{bucket}/set/", recursive=True)
    return f"{bucket}/set"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_set_in_a_store_equals_one_in_a_folder_byte_for_byte(store, bucket, videos, local):
    url = f"{bucket}/some/folder"

    report = prepare(videos, f"{url}/", processes=2, **OPTIONS)

    assert store.contents(url) == contents(local)
    assert (report["videos_read"], report["videos_failed"], report["shards"]) == (7, 1, 4)
    assert verify(url) == []
    records, notes = read_dataset(DataConfig(path=url))
    expected = read_prepared(local)[0]
    assert [replace(one, stored=None) for one in records] == [replace(one, stored=None) for one in expected]
    assert [one.stored.shard for one in records] == [f"{url}/{Path(one.stored.shard).name}" for one in expected]
    assert notes == [
        f"prepared set: {url}, 7 videos",
        f"1 of 8 videos could not be prepared; {url}/report.json lists the reasons",
    ]


def test_both_readers_give_the_frames_of_the_folder(uploaded, local):
    from hdc_keras.data.pipeline import windows_dataset

    batches = {}
    for folder in (uploaded, str(local)):
        records = read_prepared(folder)[0]
        loader = WindowLoader(records, WindowSpec(4), FrameStore((32, 48), 0.0), DecodeFailures(7, 0.1), 7, seed=0)
        batches[folder] = [next(iter(windows_dataset(loader))).numpy(), WindowBatches(loader)[0]]

    in_store, in_folder = batches.values()
    for batch, expected in zip(in_store, in_folder, strict=True):
        np.testing.assert_array_equal(batch, expected)


def test_a_set_is_read_with_as_many_requests_however_many_shards_it_has(store, bucket, videos):
    counts = []
    for per_shard in (1, 8):
        url = f"{bucket}/{per_shard}"
        prepare(videos, url, size=(32, 48), videos_per_shard=per_shard, processes=2)
        url_to_fs(url)[0].invalidate_cache()  # a new process knows nothing of the store
        with store.requests() as made:
            read_prepared(url)
        counts.append(len(made))

    # Two for prepared.json and index.parquet, or more if fsspec asks for sizes first, and one for the listing.
    assert counts[0] == counts[1] <= 4


def test_a_window_is_read_with_two_requests_and_few_bytes(store, bucket, monkeypatch):
    generator = np.random.default_rng(0)
    video = EncodedVideo([_noise(generator) for _ in range(300)], (64, 64), 25.0)
    record = VideoRecord("a.mp4", "a")
    (entry,) = write_shard(f"{bucket}/shard.tfrecord", [(record, video)])["videos"]
    stored = stored_video(f"{bucket}/shard.tfrecord", entry)
    read, spans_of = [], storage.read_spans

    def counting(path, spans):
        blocks = spans_of(path, spans)
        read.extend(map(len, blocks))
        return blocks

    monkeypatch.setattr(storage, "read_spans", counting)
    with store.requests() as made:
        frames = read_frames(stored, np.arange(100, 116))

    np.testing.assert_array_equal(frames[3], np.asarray(Image.open(io.BytesIO(video.frames[103]))))
    assert [(one.method, one.status) for one in made] == [("GET", 206)] * 2
    assert sum(read) * 10 < stored.size


def _noise(generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_an_interrupted_shard_leaves_no_object_and_is_continued(store, bucket, videos, local, monkeypatch):
    write_of, written = preparing.write_shard, []

    def interrupted(shard, encoded):
        if len(written) == 2:
            next(iter(encoded))
            raise KeyboardInterrupt
        written.append(shard)
        return write_of(shard, encoded)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(preparing, "write_shard", interrupted)
        prepare(videos, bucket, processes=1, **OPTIONS)
    expected = {
        "prepared.json",
        *(f"shard-0000{n}-of-00004.{suffix}" for n in (0, 1) for suffix in ("json", "tfrecord")),
    }
    assert set(store.contents(bucket)) == expected
    with pytest.raises(DataError, match=rf"{bucket}: 2 of 4 shards are missing; the first is shard-00002-of-00004"):
        read_prepared(bucket)
    with store.requests() as made:
        prepare(videos, bucket, processes=1, **OPTIONS)

    assert store.contents(bucket) == contents(local)
    put = [one.path.rpartition("/")[2] for one in made if one.method == "PUT" and "tfrecord" in one.path]
    assert put == ["shard-00002-of-00004.tfrecord", "shard-00003-of-00004.tfrecord"]


def test_the_last_writer_of_a_shard_in_a_store_writes_its_index(bucket, videos):
    shard, frame = f"{bucket}/shard-00000-of-00001.tfrecord", io.BytesIO()
    Image.new("RGB", (8, 8)).save(frame, "JPEG")
    encoded = EncodedVideo([frame.getvalue()], (8, 8), 10.0)

    def written_again_meanwhile():
        yield videos[0], encoded
        write_shard(shard, [(videos[0], encoded), (videos[1], "cannot be fetched")])
        yield videos[1], encoded

    index = write_shard(shard, written_again_meanwhile())

    assert not index["failed"] and storage.size_of(shard) == index["bytes"]
    assert json.loads(storage.read_bytes(f"{bucket}/shard-00000-of-00001.json")) == index


def test_a_writer_whose_shard_was_replaced_leaves_the_index_alone(bucket, videos, monkeypatch):
    shard, frame = f"{bucket}/shard-00000-of-00001.tfrecord", io.BytesIO()
    Image.new("RGB", (8, 8)).save(frame, "JPEG")
    encoded = EncodedVideo([frame.getvalue()], (8, 8), 10.0)
    other = [(videos[0], encoded), (videos[1], "cannot be fetched")]
    upload = shards.replacing

    @contextmanager
    def replaced_at_once(path):
        with upload(path) as file:
            yield file
        monkeypatch.undo()
        write_shard(shard, other)

    monkeypatch.setattr(shards, "replacing", replaced_at_once)
    write_shard(shard, [(videos[0], encoded), (videos[1], encoded)])

    index = json.loads(storage.read_bytes(f"{bucket}/shard-00000-of-00001.json"))
    assert index["failed"] and storage.size_of(shard) == index["bytes"]


def test_parts_together_equal_the_whole_and_the_last_writes_the_index(store, bucket, videos, local):
    for number in (3, 1, 2):
        assert "index.parquet" not in store.contents(bucket)
        prepare(videos, bucket, processes=1, part=Part(number, 3), **OPTIONS)

    assert store.contents(bucket) == contents(local)


def test_other_options_are_not_mixed_into_a_set(store, uploaded, videos):
    before = store.contents(uploaded)

    with pytest.raises(DataError, match=rf"{uploaded} already contains .*\n  size: \(32, 48\) before, 64 now"):
        prepare(videos, uploaded, **OPTIONS | {"size": 64})

    assert store.contents(uploaded) == before


def test_verify_finds_damage_in_a_store(store, uploaded):
    name = "shard-00001-of-00004.tfrecord"
    damaged = bytearray(store.files.cat_file(f"{uploaded}/{name}"))
    damaged[len(damaged) // 2] ^= 1
    store.files.pipe_file(f"{uploaded}/{name}", bytes(damaged))
    store.files.rm_file(f"{uploaded}/shard-00002-of-00004.tfrecord")

    problems = verify(uploaded)

    assert [problem.partition(":")[0] for problem in problems] == [name, "shard-00002-of-00004.tfrecord"]
    assert "checksum" in problems[0] and "is missing, but its index exists" in problems[1]
    with pytest.raises(DataError, match=r"shard-00002-of-00004.tfrecord: is 0 bytes long"):
        read_prepared(uploaded)


def test_a_store_that_fails_while_training_ends_it_and_no_video_counts_as_damaged(store, uploaded):
    """A video is only replaced by another one if it is damaged; a run of hours would silently lose most of its set."""
    from hdc_keras.data.pipeline import windows_dataset

    failures = DecodeFailures(7, 1.0)
    records = read_prepared(uploaded)[0]
    loader = WindowLoader(records, WindowSpec(4), FrameStore((32, 48), 0.0), failures, 7, seed=0)
    with store.access_denied():
        with pytest.raises(DataError, match=r"s3://.*\.tfrecord: cannot be read, because access is denied"):
            loader.load(0)
        with pytest.raises(DataError, match="access is denied"), failures.named():
            next(iter(windows_dataset(loader)))

    assert not failures.by_id


@pytest.mark.parametrize("command", ["prepare", "verify", "pretrain"])
def test_errors_of_the_store_are_one_clear_line(store, uploaded, videos, tmp_path, monkeypatch, command):
    folder = Path(videos[0].path).parent

    def say(url):
        arguments = {
            "prepare": ("prepare", "--data", folder, "--out", url),
            "verify": ("prepare", "--out", url, "--verify"),
            "pretrain": ("pretrain", "--data", url, "--smoke", "--run", "run"),
        }[command]
        done = call_command(tmp_path, *arguments)
        assert done.code == 1, done.out
        return done.out.strip().splitlines()[-1]

    assert "the specified bucket does not exist" in (missing := say("s3://no-such-bucket/set").lower()), missing
    with store.access_denied():
        assert "because access is denied" in say(uploaded)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, "s3", raising=False)
    assert "Install s3fs, with pip install 'hdc-keras[s3]'" in say(uploaded)


@pytest.mark.parametrize("url", ["ssh://host/set", "https://host/set", "hf://datasets/x", "simplecache::s3://bucket/x"])
def test_only_object_stores_are_written(videos, url):
    with pytest.raises(ConfigError, match="expected a local or mounted folder, or a URL with one of the protocols s3"):
        prepare(videos, url)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("s3://", "expected s3://BUCKET/FOLDER"),
        ("s3:/bucket/set", "expected two slashes, as in s3://BUCKET/FOLDER"),
        ("set.tar::a.mp4", "expected a folder. This names a video inside a file"),
    ],
)
def test_misspelled_folders_are_refused_before_anything_is_written(videos, tmp_path, monkeypatch, out, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.tar").touch()

    with pytest.raises(ConfigError, match=said):
        prepare(videos, out)
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar"]


def test_a_bucket_that_does_not_exist_is_refused_before_any_video_is_decoded(store, videos):
    with pytest.raises(RunError, match=r"s3://nowhere/prepared.json: cannot be written .*that s3://nowhere exists"):
        prepare([replace(video, path="gone") for video in videos], "s3://nowhere", **OPTIONS)


@pytest.mark.slow
@pytest.mark.end_to_end
def test_preparing_killed_at_random_moments_leaves_whole_objects_and_ends_with_the_same_bytes(
    store, bucket, videos, local
):
    folder = Path(videos[0].path).parent
    command = [
        Path(sys.executable).parent / "hdc-keras",
        "prepare",
        "--data",
        folder,
        "--out",
        bucket,
        "--workers",
        "1",
    ]
    options = ["--videos-per-shard", "2", "--set", "data.decode_size=[32, 48]"]
    expected, generator = contents(local), random.Random(0)

    def start():
        return subprocess.Popen(
            list(map(str, [*command, *options])), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    for _ in range(KILLS):
        before = set(store.contents(bucket))
        process = start()
        while set(store.contents(bucket)) <= before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 0.3))
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs(children, timeout=20)
        for name, content in store.contents(bucket).items():
            assert name == "report.json" or content == expected[name], name
    last = start()

    assert last.wait(timeout=120) == 0, last.stdout.read()
    assert store.contents(bucket) == expected


@pytest.mark.slow
@pytest.mark.end_to_end
@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_a_set_in_a_store_is_prepared_verified_and_trained_on(
    store, bucket, class_folder, tmp_path, monkeypatch, backend
):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    url = f"{bucket}/prepared"

    prepared = call_command(tmp_path, "prepare", "--data", class_folder, "--out", url, "--short-side", "32")
    verified = call_command(tmp_path, "prepare", "--out", url, "--verify")
    shutil.rmtree(class_folder)
    trained = run_command(
        tmp_path, "pretrain", "--config", "videos-cpu", "--data", url, "--run", "run", "--smoke", timeout=400
    )

    assert prepared.code == 0 and f"Next: hdc-keras pretrain --data {url}" in prepared.out, prepared.out
    assert verified.code == 0 and "All shards are intact." in verified.out, verified.out
    assert trained.code == 0 and f"prepared set: {url}, 8 videos" in trained.out, trained.out
    assert (tmp_path / "run" / "metrics.csv").exists()
