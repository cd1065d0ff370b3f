import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from hdc_keras.config import DataConfig
from hdc_keras.data import shards
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.decoding import decode
from hdc_keras.data.encoding import Decoders, encode_video
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
from hdc_keras.data.preparing import Part, prepare, verify
from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.data.sampling import WindowSpec
from hdc_keras.data.shards import read_frames, read_prepared, stored_video, write_shard
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import ConfigError, DataError, VideoDecodeError
from hdc_keras.files import temporary_beside
from tests.conftest import frame_numbers, numbered_frames

# How often `prepare` is killed. The figure in docs/data.md is from 20 kills.
KILLS = int(os.environ.get("HDC_KERAS_KILLS", "4"))
# The options of `prepared_once`.
OPTIONS = {"size": (32, 48), "videos_per_shard": 2}


@pytest.fixture(scope="session")
def videos(once):
    """Seven numbered videos, and one file that is not a video."""

    def make(folder):
        for number in range(7):
            write_video(folder / f"{number}.mp4", numbered_frames(12 + number, (32, 48)))
        (folder / "bad.mp4").write_text("not a video")

    return [
        replace(record, labels={"label": "odd" if place % 2 else "even"}, split="train", group=f"g{place // 2}")
        for place, record in enumerate(read_records(once("videos-to-prepare", make)))
    ]


@pytest.fixture(scope="session")
def prepared_once(once, videos):
    """The prepared set of `videos`; read-only."""
    return once("prepared-videos", lambda folder: prepare(videos, folder / "set", processes=2, **OPTIONS)) / "set"


@pytest.fixture
def prepared(prepared_once, tmp_path):
    """A copy of the prepared set that may be changed."""
    return shutil.copytree(prepared_once, tmp_path / "prepared")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def is_good(record: VideoRecord) -> bool:
    return "bad" not in record.path


def test_a_prepared_set_keeps_all_metadata_of_its_videos_and_lists_failures(videos, tmp_path):
    report = prepare(videos, tmp_path / "out", videos_per_shard=3, processes=2)

    records, notes = read_dataset(DataConfig(path=str(tmp_path / "out")))
    assert [replace(record, stored=None) for record in records] == list(filter(is_good, videos))
    assert [record.stored.frames for record in records] == [12 + number for number in range(7)]
    assert notes[0] == f"prepared set: {tmp_path}/out, 7 videos"
    assert notes[1:] == [f"1 of 8 videos could not be prepared; {tmp_path}/out/report.json lists the reasons"]
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["videos_asked"], report["videos_read"], report["videos_failed"]) == (8, 7, 1)
    assert report["shards"] == report["shards_in_all"] == 3 and report["frames"] == sum(range(12, 19))
    assert [(failure["path"], failure["cause"].partition(" ")[0]) for failure in report["failed"]] == [
        (next(record.path for record in videos if not is_good(record)), "Invalid")
    ]


def stored_videos(shard, records, size, quality=90, fps=None):
    """Encode videos in this process, write them to a shard, and return where their frames are."""
    encoded = [(record, encode_video(record.path, size, quality, fps)) for record in records]
    return [stored_video(str(shard), entry) for entry in write_shard(shard, encoded)["videos"]]


def test_stored_frames_agree_with_the_file(videos, tmp_path):
    good = list(filter(is_good, videos))

    for record, stored in zip(good, stored_videos(tmp_path / "shard", good, 16, quality=95), strict=True):
        every = np.arange(stored.frames)
        frames = read_frames(stored, every)
        assert frames.shape == (len(every), 16, 24, 3)
        assert np.abs(frames.astype(int) - decode(record.path, every, (16, 24))).max() <= 3
        np.testing.assert_array_equal(
            frame_numbers(read_frames(stored, np.array([[5, 0], [0, 11]]))), [[5, 0], [0, 11]]
        )


def test_tensorflow_reads_the_records_as_sequence_examples(videos, prepared_once):
    import tensorflow as tf

    read = []
    for data in tf.data.TFRecordDataset(sorted(map(str, prepared_once.glob("*.tfrecord")))):
        example = tf.train.SequenceExample.FromString(data.numpy())
        context = example.context.feature
        table = np.frombuffer(context["frame_table"].bytes_list.value[0], "<u4").reshape(2, -1)
        del context["frame_table"]
        texts = {name: context[name].bytes_list.value[0].decode() for name in context if context[name].bytes_list.value}
        read.append(
            VideoRecord(
                texts["path"], texts["video_id"], {"label": texts["label/label"]}, texts["split"], texts["group"]
            )
        )
        frames = example.feature_lists.feature_list["frames"].feature
        assert len(frames) == context["frame_count"].int64_list.value[0]
        assert tf.io.decode_jpeg(frames[0].bytes_list.value[0]).shape == (32, 48, 3)
        jpegs = [frame.bytes_list.value[0] for frame in frames]
        assert table.tolist() == [[*map(len, jpegs)], [*map(zlib.crc32, jpegs)]]
        assert context["rate"].float_list.value[0] == 25
    assert read == list(filter(is_good, videos))


def test_videos_can_be_resampled_to_another_frame_rate(tmp_path):
    write_video(tmp_path / "v.mp4", numbered_frames(30), rate=30)

    (stored,) = stored_videos(tmp_path / "shard", read_records(tmp_path), (48, 64), fps=10)

    np.testing.assert_array_equal(frame_numbers(read_frames(stored, np.arange(stored.frames))), np.arange(0, 30, 3))
    assert stored.rate == 10


def test_remote_videos_are_fetched_one_by_one_and_missing_ones_are_named(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    fetched = encode_video(f"file://{videos[0].path}", 16, 90, None)
    missing = encode_video(f"file://{tmp_path}/missing.mp4", 16, 90, None)

    assert fetched == encode_video(videos[0].path, 16, 90, None) and len(fetched.frames) == 12
    assert missing.startswith("cannot be fetched (FileNotFoundError")
    assert not list(tmp_path.iterdir())


def test_parts_together_are_identical_to_the_whole(videos, prepared_once, tmp_path):
    parts = [
        prepare(videos[::-1], tmp_path / "parts", processes=1, part=Part(number, 3), **OPTIONS) for number in (3, 1, 2)
    ]

    assert [report["shards"] for report in parts] == [1, 3, 4]
    assert contents(tmp_path / "parts") == contents(prepared_once)


def test_a_set_with_missing_parts_is_refused(prepared):
    for number in (1, 3):
        (prepared / f"shard-{number:05d}-of-00004.json").unlink()
    (prepared / "index.parquet").unlink()  # as when some parts are not prepared yet

    with pytest.raises(DataError, match=r"2 of 4 shards are missing; the first is shard-00001-of-00004"):
        read_prepared(prepared)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/3", "1/0"])
def test_a_part_is_i_of_n(text):
    with pytest.raises(ConfigError, match="I from 1 to N"):
        Part.parse(text)


def test_different_videos_or_options_are_not_mixed_into_a_set(videos, prepared):
    before = contents(prepared)

    with pytest.raises(DataError, match=r"size: \(32, 48\) before, 64 now"):
        prepare(videos, prepared, **OPTIONS | {"size": 64})
    with pytest.raises(DataError, match=r"videos: 8 before, 7 now"):
        prepare(videos[1:], prepared, **OPTIONS)
    with pytest.raises(DataError, match="other videos, or others of their labels"):
        prepare([replace(videos[0], group="another"), *videos[1:]], prepared, **OPTIONS)
    assert contents(prepared) == before


def test_complete_shards_are_not_prepared_again(videos, prepared):
    gone = [replace(record, path="gone") for record in videos]  # Decoding any of them would fail.

    report = prepare(gone, prepared, **OPTIONS)

    assert report["videos_read"] == 7 and report["videos_failed"] == 1


def leave_behind(path: Path) -> Path:
    """Create the temporary file that a process leaves if it is killed while it writes `path`."""
    temporary = temporary_beside(path)
    temporary.write_bytes(b"half")
    return temporary


def test_temporary_files_of_killed_processes_are_removed_except_those_of_other_parts(videos, prepared, prepared_once):
    shard = prepared / "shard-00000-of-00004.tfrecord"
    shard.with_suffix(".json").unlink()
    killed = [leave_behind(path) for path in (shard, shard.with_suffix(".json"))]
    (prepared / "shard-00001-of-00004.json").unlink()
    other = leave_behind(prepared / "shard-00001-of-00004.tfrecord")
    report = leave_behind(prepared / "report.json")

    prepare(videos, prepared, processes=1, part=Part(1, 2), **OPTIONS)

    assert not any(path.exists() for path in [*killed, report]) and other.exists()
    prepare(videos, prepared, **OPTIONS)
    assert contents(prepared) == contents(prepared_once)


def test_a_shard_is_written_before_its_index_and_again_if_the_index_is_missing(videos, tmp_path, monkeypatch):
    encoded = [(videos[0], encode_video(videos[0].path, 16, 90, None)), (videos[-1], "cannot be decoded")]
    write_shard(tmp_path / "whole" / "shard.tfrecord", encoded)

    def killed(file, _):
        assert contents(Path(file).parent) == {"shard.tfrecord": (tmp_path / "whole" / "shard.tfrecord").read_bytes()}
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shards, "write_text", killed)
        write_shard(tmp_path / "killed" / "shard.tfrecord", encoded)
    write_shard(tmp_path / "killed" / "shard.tfrecord", encoded)

    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_an_interrupted_shard_leaves_no_file(videos, tmp_path):
    def interrupted():
        yield videos[0], encode_video(videos[0].path, 16, 90, None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "shard.tfrecord", interrupted())

    assert not list(tmp_path.iterdir())


def test_verify_finds_shards_that_are_missing_changed_or_truncated(prepared):
    assert verify(prepared) == []
    files = sorted(prepared.glob("*.tfrecord"))

    flipped = bytearray(files[0].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    files[0].write_bytes(flipped)
    files[1].write_bytes(files[1].read_bytes()[:-100])
    files[2].unlink()
    files[3].with_suffix(".json").unlink()

    problems = verify(prepared)
    assert [problem.split(":")[0] for problem in problems] == [file.name for file in files]
    assert "checksum" in problems[0] and "checksum" in problems[1] and "missing" in problems[2]
    assert problems[3].endswith(": is missing")


def test_verify_checks_every_frame_whatever_the_checksum_of_the_shard_says(prepared):
    stored = read_prepared(prepared)[0][0].stored
    shard = Path(stored.shard)
    data = bytearray(shard.read_bytes())
    data[(stored.table + 8 * stored.frames + stored.size) // 2] ^= 1
    shard.write_bytes(data)
    index = json.loads(shard.with_suffix(".json").read_text())
    index["sha256"] = hashlib.sha256(data).hexdigest()
    shard.with_suffix(".json").write_text(json.dumps(index))

    (problem,) = verify(prepared)

    assert problem.startswith(f"{shard.name}: {index['videos'][0]['video_id']}: frame ") and "is damaged" in problem


def test_a_shard_that_was_not_copied_completely_is_named_before_training(prepared):
    shard = sorted(prepared.glob("*.tfrecord"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])

    with pytest.raises(DataError, match=rf"{shard.name}: is [\d,]+ bytes long, but [\d,]+ bytes were written"):
        read_prepared(prepared)


def test_a_damaged_record_ends_training_with_advice(prepared):
    from hdc_keras.data.pipeline import windows_dataset

    records, failures = read_prepared(prepared)[0], DecodeFailures(7, 0.1)
    stored, shard = records[0].stored, Path(records[0].stored.shard)
    data = bytearray(shard.read_bytes())
    for place in range(stored.table + 8 * stored.frames, stored.size, 100):
        data[place] ^= 1
    shard.write_bytes(data)
    loader = WindowLoader(records, WindowSpec(frames=4), FrameStore((32, 48), 0.0), failures, 7, seed=0)

    with (
        pytest.raises(DataError, match=rf"{shard.name}, byte 0: frame \d+ is damaged. `hdc-keras prepare --verify`"),
        failures.named(),
    ):
        next(iter(windows_dataset(loader)))


def test_reading_a_damaged_record_names_the_shard(prepared):
    stored = read_prepared(prepared)[0][3].stored
    shard = Path(stored.shard)

    shard.write_bytes(shard.read_bytes()[: stored.offset + stored.size // 2])
    with pytest.raises(VideoDecodeError, match=f"{shard.name}, byte {stored.offset}: .*--verify"):
        read_frames(stored, np.arange(stored.frames))
    shard.write_bytes(bytes(stored.offset + stored.size))
    with pytest.raises(VideoDecodeError, match="--verify"):
        read_frames(stored, np.arange(stored.frames))


@pytest.fixture
def stuck(tmp_path):
    """A pipe that nobody writes to. Opening it blocks forever, like a network drive that hangs."""
    os.mkfifo(tmp_path / "stuck.mp4")
    return VideoRecord(str(tmp_path / "stuck.mp4"), "stuck.mp4")


# A store that sends half of a file and then nothing more.
HANGING_STORE = """
import time
from pathlib import Path

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class HangingStore(MemoryFileSystem):
    def info(self, path, **options):
        return {"size": 8, "type": "file"}

    def get_file(self, source, target, **options):
        Path(target).write_bytes(b"half")
        Path("HALF").touch()
        time.sleep(600)


fsspec.register_implementation("hf", HangingStore, clobber=True)
"""


def test_a_download_that_takes_too_long_leaves_nothing(videos, tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    (tmp_path / "temporary").mkdir()
    # Every new Python process imports a module of this name.
    text = HANGING_STORE.replace("HALF", str(tmp_path / "half"))
    (tmp_path / "store" / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "store"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    report = prepare([videos[0], VideoRecord("hf://x/a.mp4", "x")], tmp_path / "out", processes=2, time_limit=10)

    assert (tmp_path / "half").exists() and report["videos_read"] == 1
    assert report["failed"][0]["cause"] == "not decoded within 10 seconds"
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]


def test_a_video_that_hangs_does_not_hold_up_other_shards(videos, stuck, tmp_path):
    time_limit, records = 15, [*videos, replace(stuck, video_id="0")]  # in the first shard
    began, done = time.monotonic(), []
    others = [tmp_path / "out" / f"shard-{number:05d}-of-00005.json" for number in range(1, 5)]
    with ThreadPoolExecutor(1) as thread:
        options = {"processes": 2, "time_limit": time_limit, "progress": lambda *d: done.append(d)} | OPTIONS
        preparing = thread.submit(prepare, records, tmp_path / "out", **options)
        while not all(index.exists() for index in others) and not preparing.done():
            time.sleep(0.05)
        seconds = time.monotonic() - began
        assert not preparing.done() and seconds < time_limit and done[-1] == (7, 9, 1)
        assert [lock.name for lock in (tmp_path / "out").glob(".*.lock")] == [".shard-00000-of-00005.tfrecord.lock"]
        report = preparing.result()

    causes = {failure["video_id"]: failure["cause"] for failure in report["failed"]}
    assert causes["0"] == "not decoded within 15 seconds" and report["videos_read"] == 7


def test_no_more_than_a_share_of_the_videos_is_decoded_ahead_of_one_that_hangs(videos, stuck):
    taken = []

    def of_shard():
        for record in [stuck, *10 * videos[:1]]:
            taken.append(record)
            yield record

    with Decoders(processes=2, time_limit=3, shards=2) as decoders:
        encoded = decoders.encode(of_shard(), 16, 90, None)
        assert next(encoded) == (stuck, "not decoded within 3 seconds")
        assert len(taken) == 4  # of the eight that are decoded ahead, half belong to the other shard
        assert len(list(encoded)) == 10 and len(taken) == 11


def test_an_error_stops_the_writers_that_wait_for_a_video_that_hangs(videos, stuck, tmp_path):
    def interrupt(done, total, failed):
        if done:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        prepare([replace(stuck, video_id="0"), *videos], tmp_path / "out", processes=2, progress=interrupt, **OPTIONS)

    assert time.monotonic() - began < 60  # the time limit of the video is 600 s
    assert not any("unfinished" in name or name.endswith(".lock") for name in names(tmp_path / "out"))


def test_a_video_that_takes_too_long_does_not_affect_the_others(videos, stuck, tmp_path):
    report = prepare([*videos, stuck], tmp_path / "out", processes=2, time_limit=2)

    causes = {Path(failure["path"]).name: failure["cause"] for failure in report["failed"]}
    assert causes["stuck.mp4"] == "not decoded within 2 seconds"
    assert report["videos_read"] == 7


def test_a_video_that_kills_its_process_does_not_affect_the_others(videos, stuck, tmp_path):
    with ThreadPoolExecutor(1) as thread:
        report = thread.submit(prepare, [*videos, stuck], tmp_path / "out", processes=1)
        with Path(stuck.path).open("wb"):  # Blocks until the decoding process has opened the pipe.
            reader_of(stuck.path).kill()

    causes = {Path(failure["path"]).name: failure["cause"] for failure in report.result()["failed"]}
    assert causes["stuck.mp4"] == f"its decoding process ended with exit code {-signal.SIGKILL}"
    assert report.result()["videos_read"] == 7


def reader_of(pipe: str) -> psutil.Process | None:
    """The child process that has the pipe open."""
    for child in psutil.Process().children(recursive=True):
        if any(link.is_symlink() and str(link.readlink()) == pipe for link in Path(f"/proc/{child.pid}/fd").iterdir()):
            return child
    return None


@pytest.mark.slow
@pytest.mark.end_to_end
def test_preparing_killed_at_random_moments_and_restarted_gives_the_same_bytes(videos, tmp_path):
    folder, killed = Path(videos[0].path).parent, tmp_path / "killed"
    prepare(read_records(folder), tmp_path / "undisturbed", videos_per_shard=1, processes=2)
    command = [Path(sys.executable).parent / "hdc-keras", "prepare", "--data", folder, "--out", killed]
    options = ["--videos-per-shard", "1", "--workers", "2"]

    def start():
        return subprocess.Popen(
            list(map(str, [*command, *options])), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    generator = random.Random(0)
    for _ in range(KILLS):
        before = names(killed)
        process = start()
        while names(killed) <= before and process.poll() is None:
            time.sleep(0.005)
        # It has begun to write. All eight videos take about a second.
        time.sleep(generator.uniform(0, 0.5))
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, f"still running: {alive}"
    last = start()

    assert last.wait(timeout=120) == 0, last.stdout.read()
    assert contents(killed) == contents(tmp_path / "undisturbed")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_names_of_labels_that_could_leave_a_folder_are_refused_in_a_prepared_set(prepared):
    (prepared / "index.parquet").unlink()
    for index in prepared.glob("shard-*.json"):
        index.write_text(index.read_text().replace('"label"', '"../../label"'))

    with pytest.raises(DataError, match=r"labels `../../label`: the name becomes part of file names"):
        read_dataset(DataConfig(path=str(prepared)))


def test_a_shard_that_another_process_prepares_is_left_to_it_until_it_is_killed(videos, prepared_once, tmp_path):
    folder, name = tmp_path / "prepared", "shard-00001-of-00004"
    code = (
        "import sys, time; from pathlib import Path; from hdc_keras.files import temporary_beside\n"
        "from hdc_keras.locks import try_exclusive\n"
        "with try_exclusive(Path(sys.argv[1])) as is_mine:\n"
        "    temporary_beside(Path(sys.argv[1])).touch(); print(is_mine, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, folder / f"{name}.tfrecord"], stdout=subprocess.PIPE, text=True
    )
    done = []
    try:
        assert holder.stdout.readline() == "True\n"
        prepare(videos, folder, processes=1, part=Part(1, 2), **OPTIONS)  # has no part in that shard
        with ThreadPoolExecutor(1) as thread:
            whole = thread.submit(prepare, videos, folder, processes=1, progress=lambda *d: done.append(d), **OPTIONS)
            try:
                while (not done or done[-1][0] < 6) and not whole.done():
                    time.sleep(0.05)
                time.sleep(1.5)  # more than one look at the shard of the other process
                assert not whole.done() and done[-1][0] == 6
                assert list(folder.glob(f".{name}.tfrecord.unfinished-*"))
            finally:
                holder.kill()
                holder.wait()
            assert whole.result()["videos_to_come"] == 0
    finally:
        holder.kill()
        holder.wait()

    assert contents(folder) == contents(prepared_once)


def test_locks_that_were_left_on_finished_shards_are_removed(videos, prepared, prepared_once):
    code = (
        "import os, sys; from pathlib import Path; from hdc_keras.locks import try_exclusive\n"
        "with try_exclusive(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, prepared / "shard-00000-of-00004.tfrecord"], check=False)
    assert list(prepared.glob(".*.lock"))
    (prepared / f".shard-00001-of-00004.tfrecord.lock.break.1.{'0' * 32}").touch()  # killed while it examined a lock

    prepare(videos, prepared, **OPTIONS)

    assert contents(prepared) == contents(prepared_once)


@pytest.mark.slow
@pytest.mark.end_to_end
def test_processes_with_any_parts_divide_one_folder_and_give_the_same_bytes(videos, tmp_path):
    folder = Path(videos[0].path).parent
    prepare(read_records(folder), tmp_path / "alone", videos_per_shard=1, processes=2)
    command = [Path(sys.executable).parent / "hdc-keras", "prepare", "--data", folder, "--out", tmp_path / "together"]
    started = [
        subprocess.Popen(
            list(map(str, [*command, "--videos-per-shard", 1, "--workers", 1, "--part", part])),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for part in ("1/1", "1/1", "1/2", "2/3")
    ]

    for process in started:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
