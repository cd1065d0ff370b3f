"""Manifests as people and programs write them: spaces, other delimiters, wrong encodings, damage."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hdc_keras.data.records import VideoRecord, read_manifest
from hdc_keras.errors import DataError
from tests.data.test_records import touch


@pytest.fixture
def manifest(tmp_path):
    """Write a manifest next to three videos, and return its path."""
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")

    def write(content, name="list.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


def refused(path):
    with pytest.raises(DataError) as error:
        read_manifest(path)
    message = str(error.value)
    assert all(character.isprintable() or character == "\n" for character in message) and len(message) < 2000
    return message


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spaces_are_stripped_and_the_delimiter_is_found_by_the_header(manifest, delimiter):
    rows = [["path ", " label", "notes"], [" a.mp4", "run ", "x"], [], ["b.mp4 ", " läuft schnell", "caf"]]
    path = manifest("\n".join(delimiter.join(row) for row in rows))

    assert read_manifest(path) == [
        VideoRecord(str(path.parent / "a.mp4"), "a.mp4", {"label": "run"}),
        VideoRecord(str(path.parent / "b.mp4"), "b.mp4", {"label": "läuft schnell"}),
    ]


def test_keys_and_values_of_jsonl_are_stripped(manifest):
    path = manifest(
        '\ufeff{"path": "a.mp4 ", " label": " run"}\n{"path": "b.mp4", "label": 3, "other": {"x": [1]}}', "l.jsonl"
    )

    assert [r.labels for r in read_manifest(path)] == [{"label": "run"}, {"label": "3"}]


def test_a_repeated_column_is_named(manifest):
    assert "line 1: expected each column once. Received more than one `label`" in refused(
        manifest("path,label, label\n")
    )


def test_a_repeated_column_that_is_not_used_does_no_harm(manifest):
    assert len(read_manifest(manifest("path,,,x,x\na.mp4,,,1,2\n"))) == 1


def test_bytes_that_are_not_utf_8_are_reported_with_their_line(manifest):
    rows = [b"path,label,notes", b"a.mp4,run,caf\xe9", b"b.mp4,caf\xe9,x", b"c.mp4,run,x", b"d\xe9.mp4,run,x"]

    message = refused(manifest(b"\n".join(rows)))

    assert "2 problem(s)" in message and "line 3: `label` is not UTF-8 (byte 0xE9). Save the file as UTF-8" in message
    assert "line 5: `path` is not UTF-8" in message


def test_a_long_field_is_reported_with_its_line_and_later_lines_are_read(manifest):
    message = refused(manifest(f"path,label\na.mp4,x\nb.mp4,{'y' * 200_000}\ngone.mp4,x\n"))

    assert "2 problem(s)" in message and "line 3: not readable as CSV (field larger than field limit" in message
    assert "line 4: no such file" in message


def test_an_open_quote_is_reported_with_the_line_on_which_it_opens(manifest):
    message = refused(manifest('path,label\na.mp4,x\nb.mp4,"y\nc.mp4,z\n'))

    assert "line 3: `label` contains a control character (U+000A)" in message


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("[" * 100_000, "not readable as JSON (nested too deeply)"),
        ('{"path": "b.mp4", "label": "x", "label": "y"}', "not readable as JSON (more than one `label`)"),
        ('{"path": "b.mp4", "label": ["x"]}', "`label` must be a text or a number. Received: a list"),
        ('{"path": "b.mp4", "label": "\\ud800"}', "`label` contains a control character (U+D800)"),
        ('{"path": "b\\u0000.mp4"}', "`path` contains a control character (U+0000)"),
        ('{"path": ' + "9" * 5000 + "}", "not readable as JSON"),
        ("\x1b[31m" + "x" * 500, "not readable as JSON"),
        ('["\x7f' + "x" * 500 + '"]', "expected an object with a `path`. Received: "),
    ],
)
def test_a_bad_line_of_jsonl_is_reported(manifest, line, cause):
    message = refused(manifest('{"path": "a.mp4"}\n' + line, "list.jsonl"))

    assert f"line 2: {cause}" in message


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
@pytest.mark.parametrize("content", [bytes(range(256)) * 4, b"\x89PNG\x00\x00", "path,label".encode("utf-16")])
def test_a_binary_file_is_refused_without_printing_it(manifest, name, content):
    message = refused(manifest(content, name))

    assert "expected a text file in UTF-8" in message or "not readable as JSON" in message


def test_a_folder_is_no_video(manifest):
    path = manifest("path\na.mp4\nfolder.mp4\n")
    (path.parent / "folder.mp4").mkdir()

    assert "line 3: neither a file nor a folder of images: " in refused(path)


@pytest.mark.parametrize("other", ["./a.mp4", "link.mp4", "linked/a.mp4"])
def test_two_rows_with_one_file_are_named(manifest, other):
    path = manifest(f"path,video_id,label\nb.mp4,1,x\na.mp4,2,x\n{other},3,y\n")
    (path.parent / "link.mp4").symlink_to("a.mp4")
    (path.parent / "linked").symlink_to(path.parent)

    assert "line 4: the file of `3` is already listed on line 3" in refused(path)


def test_two_rows_with_one_url_are_named(manifest):
    message = refused(manifest("path,video_id\nhttps://a.org/1.mp4,1\nhttps://a.org/1.mp4,2\n"))

    assert "line 3: the file of `2` is already listed on line 2" in message


def test_hard_links_are_two_files(manifest):
    path = manifest("path\na.mp4\ntwin.mp4\n")
    (path.parent / "twin.mp4").hardlink_to(path.parent / "a.mp4")

    assert len(read_manifest(path)) == 2


@pytest.mark.parametrize("name", ["../../x", "..", "", ".hidden", "a\\b", "C:", "x" * 101, "ü" * 51, "new\nline"])
def test_a_label_column_whose_name_could_leave_a_folder_is_refused(manifest, name):
    path = manifest(json.dumps({"path": "a.mp4", f"label_{name}": "x"}), "list.jsonl")

    assert f"labels `{name[:1]}".rstrip() in refused(path)


@pytest.mark.parametrize("name", ["übung", "運動", "गति", "two words", "a-b.c"])
def test_unicode_names_of_label_columns_are_allowed(manifest, name):
    path = manifest(f"path,label_{name}\na.mp4,läuft\n")

    assert read_manifest(path)[0].labels == {name: "läuft"}


@pytest.mark.parametrize(
    "url", ["local:///etc/passwd", "ssh://host/a.mp4", "zip://a.mp4::https://a.org/b.zip", "x://y"]
)
def test_urls_with_other_protocols_are_refused_with_their_line(manifest, url):
    message = refused(manifest(f"path\na.mp4\n{url}\n"))

    assert f"line 3: {url}: expected a local path, or a URL with one of the protocols http, https, s3" in message


def test_columns_of_parquet_are_texts_and_vectors_are_ignored(manifest):
    columns = {
        "path": ["a.mp4", "b.mp4"],
        "label": [3, 4],
        "group": ["g", None],
        "P5": [[0.5], [1.5]],
        "note": [b"x"] * 2,
    }
    path = manifest("", "list.parquet")
    pq.write_table(pa.table(columns), path)

    records = read_manifest(path)

    assert [(r.video_id, r.labels, r.group) for r in records] == [
        ("a.mp4", {"label": "3"}, "g"),
        ("b.mp4", {"label": "4"}, None),
    ]


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        (None, "list.parquet: cannot be read as a Parquet file of texts"),
        ({"file": ["a.mp4"]}, "list.parquet: expected a column `path`. Received: file"),
        ({"path": [["a.mp4"]]}, "list.parquet: cannot be read as a Parquet file of texts"),
        ({"path": ["a.mp4", None]}, "line 2: `path` is empty"),
        ({"path": ["a.mp4"], "start": [3.5], "end": [1.0]}, "line 1: expected `start` < `end` in seconds"),
        ({"path": []}, "lists no videos. Expected one line per video."),
    ],
)
def test_a_bad_parquet_manifest_is_explained(manifest, columns, cause):
    path = manifest("text", "list.parquet")
    if columns is not None:
        pq.write_table(pa.table(columns), path)

    assert cause in refused(path)
