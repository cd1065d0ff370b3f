"""Videos inside tar, Parquet and Arrow files, by a path FILE::MEMBER."""

import pickle
import random
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hdc_keras.data.decoding import decode, index_frames, stream_frames
from hdc_keras.data.inspection import inspect_video
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.members import open_video_file, video_bytes
from hdc_keras.data.records import VideoRecord, read_manifest, read_videos
from hdc_keras.data.tar_files import _places, tar_index
from hdc_keras.data.video_columns import _arrow_ranges, _row_groups
from hdc_keras.errors import DataError, VideoDecodeError
from hdc_keras.features.store import identity
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.runs.videos import VIDEOS, seen_in_pretraining, size_of, write_videos
from tests.conftest import frame_numbers, numbered_frames
from tests.data.containers import embedded, video, write_parquet, write_tar
from tests.data.test_decoding import CONTAINERS, encode


def write_arrow(path, videos, **options):
    import pyarrow as pa

    table = pa.table({"video": embedded(videos)})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


@pytest.fixture
def clips(tmp_path):
    """Five different videos."""
    return [video(tmp_path, f"{number}.mp4", first=number) for number in range(5)]


@pytest.fixture(params=["tar", "parquet", "arrow"])
def members(request, tmp_path, clips):
    """The paths of the five videos inside a file."""
    if request.param == "tar":
        file = write_tar(tmp_path / "shard.tar", {f"walk/{clip.name}": clip for clip in clips})
        return [f"{file}::walk/{clip.name}" for clip in clips]
    write = {"parquet": write_parquet, "arrow": write_arrow}[request.param]
    file = write(tmp_path / f"rows.{request.param}", clips)
    return [f"{file}::video/{row}" for row in range(5)]


def test_a_decoding_process_maps_arrow_files_that_are_larger_than_its_memory(tmp_path, clips):
    file = write_arrow(tmp_path / "rows.arrow", clips)
    with file.open("r+b") as stream:
        stream.truncate(8 * 10**9)  # takes no space; a stream of Arrow ends before it
    script = (
        "import sys; from hdc_keras.data.encoding import _start_worker, encode_video; _start_worker(sys.argv[1]);"
        "print(len(encode_video(sys.argv[2], 16, 90, None).frames))"
    )

    printed = subprocess.check_output([sys.executable, "-c", script, str(tmp_path), f"{file}::video/3"], text=True)

    assert printed.strip() == "12"


def test_a_clip_is_the_same_as_from_the_plain_file(members, clips):
    indices = np.array([[0, 11], [5, 5]])

    for member, clip in zip(members, clips, strict=True):
        np.testing.assert_array_equal(decode(member, indices, (24, 32)), decode(str(clip), indices, (24, 32)))
        assert index_frames(member).rate == 10 and open_video_file(member).read() == clip.read_bytes()
    streamed = np.stack(list(stream_frames(members[3], 24, rate=5.0)))
    np.testing.assert_array_equal(streamed, np.stack(list(stream_frames(str(clips[3]), 24, rate=5.0))))


def test_what_takes_a_record_takes_one_inside_a_file(members, clips):
    record = pickle.loads(pickle.dumps(VideoRecord(members[2], "two", segment=(0.3, 0.8))))
    store = FrameStore((48, 64), 1.0, fps=10.0)

    assert store.count(record) == 5
    assert frame_numbers(store.clips(record, np.arange(5))).tolist() == [5, 6, 7, 8, 9]
    facts = inspect_video(VideoRecord(members[2], "two"))
    assert (facts.frames, facts.rate, facts.size, facts.codec, facts.problem) == (12, 10.0, (48, 64), "h264", None)
    assert len({tuple(identity(VideoRecord(member, "id"))) for member in members}) == 5
    known = None if ".parquet" in members[2] else clips[2].stat().st_size
    assert size_of(record) == video_bytes(members[2]) == known


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_decoded_inside_a_tar(tmp_path, name):
    encode(tmp_path / name, numbered_frames(30), **CONTAINERS[name])
    tar = write_tar(tmp_path / "shard.tar", {"cover.jpg": b"x" * 700, name: tmp_path / name})

    clip = decode(f"{tar}::{name}", np.array([29, 17, 2]))

    np.testing.assert_array_equal(clip, decode(str(tmp_path / name), np.array([29, 17, 2])))


def test_a_manifest_may_name_videos_inside_files(members, tmp_path):
    lines = [f"{member.removeprefix(f'{tmp_path}/')},{'ab'[row % 2]}" for row, member in enumerate(members)]
    missing = "shard.tar::walk/9.mp4,a" if ".tar" in members[0] else f"{lines[4][:-3]}5,a"
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines, missing]))

    with pytest.raises(DataError, match=r"list\.csv: 1 problem\(s\):\n  line 7: .*(no file of this name|no such row)"):
        read_manifest(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    records = read_manifest(tmp_path / "list.csv")

    assert [record.path for record in records] == members
    assert [record.label for record in records] == ["a", "b", "a", "b", "a"]
    assert records[0].video_id == members[0].removeprefix(f"{tmp_path}/")


def test_one_video_inside_a_file_is_a_set(members):
    assert [record.path for record in read_videos(members[1]).records] == [members[1]]
    with pytest.raises(DataError, match=r"no such file or folder"):
        read_videos(members[1].replace("::", "x::"))


def test_a_path_through_a_link_is_the_same_video(members, clips, tmp_path):
    file, name = members[0].split("::")
    link = tmp_path / f"link.{file.rpartition('.')[2]}"
    link.symlink_to(file)
    (tmp_path / "list.csv").write_text(f"path\n{members[0]}\n{link}::{name}\n")
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    write_videos(run.path / VIDEOS, [VideoRecord(members[0], "a", split="train")])
    test = [VideoRecord(f"{link}::{name}", "b", split="test"), VideoRecord(members[1], "c", split="test")]

    with pytest.raises(DataError, match=r"line 3: the file of .* is already listed on line 2"):
        read_manifest(tmp_path / "list.csv")
    assert seen_in_pretraining(run.path, test) == {"test_videos": 1, "of": 2}
    if ".parquet" not in members[0]:  # found again as a plain file by its bytes
        assert seen_in_pretraining(run.path, [VideoRecord(str(clips[0]), "d", split="test")])["test_videos"] == 1


@pytest.mark.parametrize(
    ("member", "cause"),
    [
        ("shard.tar::walk/9.mp4", "the tar holds no file of this name"),
        ("rows.parquet::video/5", "there is no such row; the file has 5"),
        ("rows.arrow::video/5", "there is no such row; the file has 5"),
        ("rows.arrow::image/0", "has no column of videos `image`. Columns of videos: video"),
        ("rows.parquet::video/x", "expected FILE::COLUMN/ROW, where 0 is the first row. Received: video/x"),
        ("nulls.parquet::video/0", "the row is empty"),
        ("nulls.arrow::video/0", "the row is empty"),
        ("paths.parquet::video/0", "only the path gone.mp4, and there is no such file"),
        ("compressed.arrow::video/0", "is compressed, so single videos cannot be read"),
        ("text.parquet::video/0", "is damaged or not a Parquet file"),
        ("text.arrow::video/0", "is damaged or not an Arrow file"),
        ("rows.parquet::video/00", "expected FILE::COLUMN/ROW"),
        ("text.tar::0.mp4", "is not a tar"),
        ("text.txt.tar::0.mp4", "No such file or directory"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, clips, member, cause):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_tar(tmp_path / "shard.tar", {"walk/0.mp4": clips[0]})
    write_parquet(tmp_path / "rows.parquet", clips)
    write_parquet(tmp_path / "nulls.parquet", [None])
    write_arrow(tmp_path / "rows.arrow", clips)
    write_arrow(tmp_path / "nulls.arrow", [None])
    write_arrow(tmp_path / "compressed.arrow", clips, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(
        pa.table({"video": pa.array([{"bytes": None, "path": "gone.mp4"}], kind)}), tmp_path / "paths.parquet"
    )
    for name in ("text.parquet", "text.arrow", "text.tar"):
        (tmp_path / name).write_text("a text " * 1000)

    with pytest.raises(VideoDecodeError, match=re.escape(cause)):
        decode(str(tmp_path / member), np.array([0]))
    assert cause in inspect_video(VideoRecord(str(tmp_path / member), "id")).problem


def test_a_row_that_only_names_a_file_is_that_video(tmp_path, clips):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = pa.array([{"bytes": None, "path": "1.mp4"}, {"bytes": None, "path": str(clips[2])}], kind)
    pq.write_table(pa.table({"video": rows}), tmp_path / "paths.parquet")

    numbers = [frame_numbers(decode(f"{tmp_path}/paths.parquet::video/{row}", np.array([0]))).item() for row in (0, 1)]

    assert numbers == [1, 2]


def test_names_in_a_tar_are_found_with_and_without_a_leading_dot_and_when_long(tmp_path, clips):
    long = f"{'folder/' * 20}{'n' * 90}.mp4"
    tar = write_tar(tmp_path / "shard.tar", {"./a.mp4": clips[1], long: clips[2]})

    assert frame_numbers(decode(f"{tar}::a.mp4", np.array([0]))).item() == 1
    assert frame_numbers(decode(f"{tar}::./a.mp4", np.array([0]))).item() == 1
    assert frame_numbers(decode(f"{tar}::{long}", np.array([0]))).item() == 2


def test_the_index_of_a_tar_reads_no_contents(tmp_path):
    """Reading 200 GB would take minutes; the disk holds only the headers, because the rest was never written."""
    size = 200 * 10**9
    entries = [tarfile.TarInfo("1.mp4"), tarfile.TarInfo("2.mp4")]
    with (tmp_path / "large.tar").open("wb") as file:
        for entry in entries:
            entry.size = size
            file.write(entry.tobuf(tarfile.GNU_FORMAT))
            file.seek(-(-size // 512) * 512, 1)
        file.write(bytes(1024))
    started = time.monotonic()

    index = tar_index(str(tmp_path / "large.tar"))

    assert time.monotonic() - started < 5
    assert [length for _, length in index.ranges.values()] == [size, size] and index.is_complete


def test_a_damaged_file_is_read_or_refused(members, tmp_path):
    """Without validation, pyarrow crashes the process on some damaged Arrow files."""
    file, name = members[0].split("::")
    content, damaged, generator = Path(file).read_bytes(), tmp_path / f"damaged{Path(file).suffix}", random.Random(0)
    outcomes = Counter()
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(generator.choice([1, 2, 5])):
            # What describes the content lies at the beginning or at the end.
            place = generator.choice([generator.randrange(800), generator.randrange(len(content) - 600, len(content))])
            changed[place] = generator.randrange(256)
        damaged.write_bytes(
            changed[: generator.choice([len(content), len(content), generator.randrange(len(content))])]
        )
        for cached in (_places, _row_groups, _arrow_ranges):
            cached.cache_clear()
        try:
            with open_video_file(f"{damaged}::{name}") as opened:
                outcomes["read"] += bool(opened.read())
        except VideoDecodeError:
            outcomes["refused"] += 1

    assert outcomes["read"] > 10 and outcomes["refused"] > 10
