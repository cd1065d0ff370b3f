"""Remote videos, through fsspec's in-memory store."""

import tempfile
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from hdc_keras.data import remote
from hdc_keras.data.records import read_videos
from hdc_keras.data.remote import PROTOCOLS, list_files, local_copy, url_problem
from hdc_keras.errors import DataError, VideoDecodeError


@pytest.fixture
def store():
    """Fsspec's in-memory store, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_hidden_entries_of_a_remote_folder_are_skipped_and_other_files_counted(store):
    for name in ("run/1.mp4", "walk/2.MKV", "run/._1.mp4", "__MACOSX/run/1.mp4", ".x/1.mp4", "run/a.gif", "list.txt"):
        store.pipe_file(f"/set/{name}", b"")
    store.pipe_file("/set-of-others/1.mp4", b"")

    records, notes = read_videos("memory://set/")

    assert [(r.path, r.label) for r in records] == [
        ("memory://set/run/1.mp4", "run"),
        ("memory://set/walk/2.MKV", "walk"),
    ]
    assert notes == ["class folders: 2 classes, 2 videos", "ignored: 3 hidden or system, 1 .gif, 1 .txt"]


@pytest.mark.parametrize(
    "url",
    [
        "local:///etc",
        "ssh://host/videos",
        "zip://videos::s3://bucket/a.zip",
        "s3://bucket::file:///etc",
        "simplecache::s3://bucket",
        "S3://bucket",
        "://x",
    ],
)
def test_other_protocols_and_chains_are_refused(url):
    with pytest.raises(DataError, match="expected a local path, or a URL with one of the protocols http, https, s3"):
        list_files(url)
    with pytest.raises(VideoDecodeError, match="expected a local path"), local_copy(f"{url}/a.mp4"):
        pass


def test_every_protocol_that_the_documentation_promises_is_allowed():
    assert not [protocol for protocol in ("s3", "gs", "az", "hf", "https") if url_problem(f"{protocol}://bucket/a.mp4")]
    assert not {"local", "ssh", "sftp", "zip", "tar", "github", "simplecache"} & {*PROTOCOLS}


def test_the_temporary_copy_has_a_plain_name_and_the_suffix_of_the_video(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store.pipe_file("/set/a.mp4", b"frames")
    store.pipe_file("/set/a.mp4?key=/..", b"frames")

    for url in ("memory://set/a.mp4", "memory://set/a.mp4?key=/.."):
        with local_copy(url) as file:
            assert file.endswith("/video.mp4")
            assert Path(file).read_bytes() == b"frames"
    assert not list(tmp_path.iterdir())


def test_a_file_over_the_limit_is_refused_before_it_is_fetched(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(remote, "MAX_BYTES", 2**30 // 8)
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_, **__: {"size": 2**30, "type": "file"})
    monkeypatch.delattr(MemoryFileSystem, "_open")  # nothing is fetched
    store.pipe_file("/set/a.mp4", b"frames")

    with (
        pytest.raises(VideoDecodeError, match=r"larger than 0.125 GiB, the limit for a remote video"),
        local_copy("memory://set/a.mp4"),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stated", [None, 10])
def test_a_download_that_exceeds_the_limit_ends_early_and_leaves_nothing(store, tmp_path, monkeypatch, stated):
    """As from a web server that states no size, or a wrong one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(remote, "MAX_BYTES", 5000)
    monkeypatch.setattr(MemoryFileSystem, "blocksize", 1000)
    store.pipe_file("/set/a.mp4", b"x" * 1_000_000)
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_, **__: {"size": stated, "type": "file"})

    with (
        pytest.raises(VideoDecodeError, match="the limit for a remote video"),
        local_copy("memory://set/a.mp4"),
    ):
        pass
    assert store.store["/set/a.mp4"].tell() == 6000
    assert not list(tmp_path.iterdir())
