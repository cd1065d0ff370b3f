"""Files appear complete or not at all, and no temporary file is left behind."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from hdc_keras.errors import RunError
from hdc_keras.files import (
    digest,
    flush_to_disk,
    link_or_copy,
    remove_leftovers,
    replacing,
    replacing_stream,
    require_writable,
    temporary_beside,
    temporary_folder,
    write_bytes,
    write_requested,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def leave_behind(path):
    """Create the temporary file that a process leaves if it is killed while it writes `path`."""
    temporary = temporary_beside(path)
    temporary.write_text("half")
    return temporary


@pytest.fixture
def flushed(monkeypatch):
    """The paths passed to `os.fsync`, in order."""
    paths = []

    def noting(number):
        paths.append(str(Path(f"/proc/self/fd/{number}").readlink()))
        fsync(number)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", noting)
    return paths


def test_writing_stores_the_exact_content_and_creates_the_folder(tmp_path):
    write_text(tmp_path / "a" / "b" / "text", "größer\r\n")
    write_bytes(tmp_path / "bytes", b"\x00\xff")
    with replacing_stream(tmp_path / "stream") as stream:
        stream.write(b"one ")
        stream.write(b"two")

    assert (tmp_path / "a" / "b" / "text").read_bytes() == "größer\r\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "stream").read_bytes() == b"one two"
    assert names(tmp_path) == ["a", "b", "bytes", "stream", "text"]


def test_nothing_is_at_the_final_path_until_the_block_ends(tmp_path):
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path
        assert not (tmp_path / "file").exists()

    assert (tmp_path / "file").read_text() == "whole"


@pytest.mark.parametrize("previous", [None, "old"])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_writer_that_raises_keeps_the_previous_file(tmp_path, previous, failure):
    file = tmp_path / "file"
    if previous:
        file.write_text(previous)

    with pytest.raises(failure), replacing(file) as temporary:
        temporary.write_text("half")
        raise failure

    assert names(tmp_path) == (["file"] if previous else [])
    assert not previous or file.read_text() == previous


def test_a_stream_whose_writer_raises_keeps_the_previous_file(tmp_path):
    write_text(tmp_path / "file", "old")

    with pytest.raises(ValueError, match="half-way"), replacing_stream(tmp_path / "file") as stream:
        stream.write(b"half")
        raise ValueError("half-way")

    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_previous_file(tmp_path, monkeypatch, step):
    write_text(tmp_path / "file", "old")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "file", "new")

    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


def test_a_folder_appears_with_all_its_content(tmp_path):
    with replacing(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "file").write_text("whole")
        assert not (tmp_path / "folder").exists()

    assert (tmp_path / "folder" / "inner" / "file").read_text() == "whole"
    assert names(tmp_path) == ["file", "folder", "inner"]


def test_a_folder_that_exists_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    write_text(tmp_path / "folder" / "first", "first")

    with pytest.raises(OSError, match="not empty"), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "second").write_text("second")

    assert names(tmp_path) == ["first", "folder"]


def test_the_content_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, flushed):
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")

    assert flushed == [str(temporary), str(tmp_path)]


def test_every_file_inside_a_folder_is_flushed_and_no_file_beside_it(tmp_path, flushed):
    write_text(tmp_path / "beside" / "file", "not touched")
    flushed.clear()

    with replacing(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "file").write_text("whole")

    within = [str(temporary / "inner" / "file"), str(temporary / "inner"), str(temporary)]
    assert sorted(flushed[:-1]) == sorted(within) and flushed[-1] == str(tmp_path)


def test_a_file_system_that_cannot_flush_folders_is_not_an_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def folders_fail(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "not supported")
        fsync(number)

    monkeypatch.setattr(os, "fsync", folders_fail)
    write_text(tmp_path / "file", "whole")
    flush_to_disk(tmp_path)

    assert (tmp_path / "file").read_text() == "whole"


def test_temporary_names_are_unique_hidden_and_in_the_folder_of_the_final_name(tmp_path):
    file = tmp_path / "index.json"

    temporaries = {temporary_beside(file) for _ in range(1000)}

    assert len(temporaries) == 1000
    assert all(path.parent == tmp_path and path.name.startswith(".index.json") for path in temporaries)


def test_temporary_files_do_not_match_patterns_of_final_names(tmp_path):
    leave_behind(tmp_path / "index.json")

    assert not list(tmp_path.glob("*.json"))


def test_a_temporary_path_ends_in_the_suffix_that_its_writer_needs(tmp_path):
    with replacing(tmp_path / "model.keras", suffix=".keras") as temporary:
        temporary.write_text("whole")

    assert temporary.suffix == ".keras" and names(tmp_path) == ["model.keras"]


def test_two_writers_at_once_do_not_share_a_temporary_file(tmp_path):
    barrier = threading.Barrier(2, timeout=30)

    def write(letter):
        with replacing_stream(tmp_path / "file") as stream:
            barrier.wait()
            stream.write(letter * 1000)
            barrier.wait()

    writers = [threading.Thread(target=write, args=[letter]) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert (tmp_path / "file").read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert names(tmp_path) == ["file"]


def test_only_leftovers_of_the_given_path_are_removed(tmp_path):
    write_text(tmp_path / "shard", "whole")
    others = [leave_behind(tmp_path / "shard2"), leave_behind(tmp_path / "ard"), tmp_path / ".shard"]
    others[-1].write_text("a user's hidden file")
    leave_behind(tmp_path / "shard")
    (temporary_beside(tmp_path / "shard") / "inner").mkdir(parents=True)

    remove_leftovers(tmp_path / "shard")

    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "shard"])


def test_leftovers_of_a_name_with_wildcard_characters_are_removed(tmp_path):
    file = tmp_path / "videos[1]*.json"
    leave_behind(file)

    remove_leftovers(file)

    assert names(tmp_path) == []


def test_all_leftovers_of_a_folder_are_removed_but_none_in_its_subfolders(tmp_path):
    (tmp_path / "inner").mkdir()
    kept = [leave_behind(tmp_path / "inner" / "file"), tmp_path / "inner"]
    leave_behind(tmp_path / "one")
    leave_behind(tmp_path / "two.json")

    remove_leftovers(tmp_path)

    assert sorted(tmp_path.rglob("*")) == sorted(kept)


def test_removing_leftovers_from_a_missing_folder_does_nothing(tmp_path):
    remove_leftovers(tmp_path / "missing" / "file")

    assert names(tmp_path) == []


def test_a_linked_file_takes_no_space(tmp_path):
    write_text(tmp_path / "source", "content")

    link_or_copy(tmp_path / "source", tmp_path / "folder" / "file")

    assert (tmp_path / "folder" / "file").samefile(tmp_path / "source")
    assert names(tmp_path) == ["file", "folder", "source"]


def test_a_file_is_copied_where_the_file_system_has_no_links(tmp_path, monkeypatch):
    write_text(tmp_path / "source", "content")

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    link_or_copy(tmp_path / "source", tmp_path / "file")

    assert (tmp_path / "file").read_text() == "content" and names(tmp_path) == ["file", "source"]
    assert not (tmp_path / "file").samefile(tmp_path / "source")


def test_a_requested_file_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    write_text(tmp_path / "occupied", "a file where a folder is needed")

    write_requested(tmp_path / "page.html", b"page")
    with pytest.raises(RunError, match=r"page\.html cannot be written \(.+\)\. Choose another with --out"):
        write_requested(tmp_path / "occupied" / "page.html", b"page")

    assert (tmp_path / "page.html").read_bytes() == b"page"


def test_a_digest_is_sha_256(tmp_path):
    write_text(tmp_path / "file", "abc")

    # FIPS 180-2, appendix B.1.
    assert digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_temporary_folder_is_removed_with_its_content_even_after_an_error(tmp_path):
    with pytest.raises(KeyError), temporary_folder(tmp_path / "table") as folder:
        (folder / "part").write_text("intermediate")
        assert names(tmp_path) == sorted([folder.name, "part"]) and folder.name.startswith(".table")
        raise KeyError

    assert names(tmp_path) == []


def test_whether_a_folder_can_be_written_is_known_in_advance_and_leaves_nothing(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []

    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError):
        require_writable(tmp_path / "file")
    with pytest.raises(OSError):
        require_writable(tmp_path / "file" / "folder")
