import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from hdc_keras.config import DataConfig
from hdc_keras.data.datasets import read_dataset
from hdc_keras.data.decoding import decode
from hdc_keras.data.loading import DecodeFailures, FrameStore, WindowLoader
from hdc_keras.data.preparing import Part, prepare, verify
from hdc_keras.data.records import VideoRecord, read_records
from hdc_keras.data.sampling import WindowSpec
from hdc_keras.data.shards import read_frames, read_prepared
from hdc_keras.data.synthetic import write_video
from hdc_keras.errors import ConfigError, DataError, VideoDecodeError
from tests.conftest import frame_numbers, numbered_frames

# Starts of `prepare` that are killed; the figure in docs/data.md is from 20.
KILLS = int(os.environ.get("HDC_KERAS_KILLS", "4"))


@pytest.fixture
def videos(tmp_path):
    """Seven numbered videos and one file that is none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(7):
        write_video(folder / f"{number}.mp4", numbered_frames(12 + number, (32, 48)))
    (folder / "bad.mp4").write_text("no video")
    return [
        replace(record, labels={"label": "odd" if place % 2 else "even"}, split="train", group=f"g{place // 2}")
        for place, record in enumerate(read_records(folder))
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_prepared_set_says_all_that_the_records_said_and_names_what_failed(videos, tmp_path):
    report = prepare(videos, tmp_path / "out", videos_per_shard=3, processes=2)

    records, notes = read_dataset(DataConfig(path=str(tmp_path / "out")))
    good = [record for record in videos if "bad" not in record.path]
    assert [replace(record, stored=None) for record in records] == good
    assert [record.stored.frames for record in records] == [12 + number for number in range(7)]
    assert notes == ["1 of 8 videos could not be prepared; report.json there says why"]
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["videos_asked"], report["videos_read"], report["videos_failed"]) == (8, 7, 1)
    assert report["shards"] == report["shards_in_all"] == 3 and report["frames"] == sum(range(12, 19))
    assert [(failure["path"], bool(failure["cause"])) for failure in report["failed"]] == [
        (next(record.path for record in videos if "bad" in record.path), True)
    ]


def test_stored_frames_are_those_of_the_file(videos, tmp_path):
    prepare(videos, tmp_path / "out", size=16, quality=95, processes=1)

    for record in read_prepared(tmp_path / "out")[0]:
        every = np.arange(record.stored.frames)
        stored = read_frames(record.stored, every)
        assert stored.shape == (len(every), 16, 24, 3)
        assert np.abs(stored.astype(int) - decode(record.path, every, (16, 24))).max() <= 3
        np.testing.assert_array_equal(
            frame_numbers(read_frames(record.stored, np.array([[5, 0], [0, 11]]))), [[5, 0], [0, 11]]
        )


def test_tensorflow_reads_the_records_as_sequence_examples(videos, tmp_path):
    import tensorflow as tf

    prepare(videos, tmp_path / "out", size=128, videos_per_shard=100, processes=1)

    read = []
    for data in tf.data.TFRecordDataset(str(tmp_path / "out" / "shard-00000-of-00001.tfrecord")):
        example = tf.train.SequenceExample.FromString(data.numpy())
        context = example.context.feature
        texts = {name: context[name].bytes_list.value[0].decode() for name in context if context[name].bytes_list.value}
        read.append(
            VideoRecord(
                texts["path"], texts["video_id"], {"label": texts["label/label"]}, texts["split"], texts["group"]
            )
        )
        frames = example.feature_lists.feature_list["frames"].feature
        assert len(frames) == context["frame_count"].int64_list.value[0]
        assert tf.io.decode_jpeg(frames[0].bytes_list.value[0]).shape == (32, 48, 3)
        assert context["rate"].float_list.value[0] > 0
    assert read == [record for record in videos if "bad" not in record.path]


def test_frames_can_be_taken_at_another_rate(tmp_path):
    write_video(tmp_path / "v.mp4", numbered_frames(30), rate=30)
    records = read_records(tmp_path)

    prepare(records, tmp_path / "out", fps=10, processes=1)

    stored = read_prepared(tmp_path / "out")[0][0].stored
    np.testing.assert_array_equal(frame_numbers(read_frames(stored, np.arange(stored.frames))), np.arange(0, 30, 3))
    assert stored.rate == 10


def test_remote_videos_are_fetched_and_those_that_are_gone_are_named(videos, tmp_path):
    remote = [replace(record, path=f"file://{record.path}") for record in videos]
    Path(videos[0].path).unlink()

    report = prepare(remote, tmp_path / "out", processes=1)

    records, failed = read_prepared(tmp_path / "out")
    assert report["videos_read"] == len(records) == 6
    assert [failure["cause"].startswith("cannot be fetched (FileNotFoundError") for failure in failed] == [True, False]
    assert not list(tmp_path.glob("**/*.mp4.*"))


def test_shards_are_read_from_where_tensorflow_s_file_systems_reach(videos, tmp_path):
    import tensorflow as tf

    from hdc_keras.data.pipeline import windows_dataset

    prepare(videos, tmp_path / "out", size=(32, 48), videos_per_shard=3, processes=1)
    # Its file system in memory stands for gs://, which takes the same way.
    for path in (tmp_path / "out").iterdir():
        with tf.io.gfile.GFile(f"ram://prepared/{path.name}", "wb") as file:
            file.write(path.read_bytes())

    read = {}
    for folder in ("ram://prepared", str(tmp_path / "out")):
        records, _ = read_dataset(DataConfig(path=folder))
        loader = WindowLoader(records, WindowSpec(4), FrameStore((32, 48), 0.0), DecodeFailures(7, 0.1), 7, seed=0)
        frames = np.stack([read_frames(record.stored, np.arange(3)) for record in records])
        read[folder] = [next(iter(windows_dataset(loader))).numpy(), frames]

    assert records[0].stored.shard.startswith(str(tmp_path))
    for remote, local in zip(*read.values(), strict=True):
        np.testing.assert_array_equal(remote, local)
    with pytest.raises(DataError, match=r"ram://nowhere: cannot be listed"):
        read_dataset(DataConfig(path="ram://nowhere"))


def test_parts_together_are_the_whole(videos, tmp_path):
    prepare(videos, tmp_path / "whole", videos_per_shard=2, processes=1)

    reports = [
        prepare(videos[::-1], tmp_path / "parts", videos_per_shard=2, processes=1, part=Part(i, 3)) for i in (3, 1, 2)
    ]

    assert [report["shards"] for report in reports] == [1, 3, 4]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_set_with_missing_parts_is_refused(videos, tmp_path):
    prepare(videos, tmp_path / "out", videos_per_shard=2, processes=1, part=Part(1, 2))

    with pytest.raises(DataError, match=r"2 of 4 shards are missing, the first of them shard-00001-of-00004"):
        read_prepared(tmp_path / "out")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/3", "1/0"])
def test_a_part_is_i_of_n(text):
    with pytest.raises(ConfigError, match="I from 1 to N"):
        Part.parse(text)


def test_another_set_or_another_size_is_not_mixed_in(videos, tmp_path):
    prepare(videos, tmp_path / "out", processes=1)
    before = contents(tmp_path / "out")

    with pytest.raises(DataError, match=r"size: \(128, 171\) there, 64 now"):
        prepare(videos, tmp_path / "out", size=64, processes=1)
    with pytest.raises(DataError, match=r"videos: 8 there, 7 now"):
        prepare(videos[1:], tmp_path / "out", processes=1)
    assert contents(tmp_path / "out") == before


def test_what_is_done_is_not_done_again(videos, tmp_path):
    prepare(videos, tmp_path / "out", videos_per_shard=2, processes=1)
    for record in videos:
        Path(record.path).unlink()  # reading any of them again would fail it

    report = prepare(videos, tmp_path / "out", videos_per_shard=2, processes=1)

    assert report["videos_read"] == 7 and report["videos_failed"] == 1


def test_verify_finds_what_is_missing_changed_or_cut(videos, tmp_path):
    out = tmp_path / "out"
    prepare(videos, out, videos_per_shard=2, processes=1)
    assert verify(out) == []
    shards = sorted(out.glob("*.tfrecord"))

    flipped = bytearray(shards[0].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    shards[0].write_bytes(flipped)
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    shards[2].unlink()
    shards[3].with_suffix(".json").unlink()

    problems = verify(out)
    assert [problem.split(":")[0] for problem in problems] == [shard.name for shard in shards]
    assert "checksum" in problems[0] and "checksum" in problems[1] and "missing" in problems[2] + problems[3]


def test_a_shard_that_was_not_copied_whole_is_named_before_training(videos, tmp_path):
    prepare(videos, tmp_path / "out", videos_per_shard=2, processes=1)
    shard = sorted((tmp_path / "out").glob("*.tfrecord"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])

    with pytest.raises(DataError, match=rf"{shard.name}: is [\d,]+ bytes long, and was written with"):
        read_prepared(tmp_path / "out")


def test_a_damaged_record_ends_training_with_advice(videos, tmp_path):
    from hdc_keras.data.pipeline import windows_dataset

    prepare(videos, tmp_path / "out", processes=1)
    shard = next((tmp_path / "out").glob("*.tfrecord"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    records, failures = read_prepared(tmp_path / "out")[0], DecodeFailures(7, 0.1)
    loader = WindowLoader(records, WindowSpec(frames=4), FrameStore((32, 48), 0.0), failures, 7, seed=0)

    with pytest.raises(DataError, match=r"a shard .* is damaged; `hdc-keras prepare .*--verify"), failures.named():
        next(iter(windows_dataset(loader)))


def test_reading_a_damaged_record_names_the_shard(videos, tmp_path):
    prepare(videos, tmp_path / "out", processes=1)
    stored = read_prepared(tmp_path / "out")[0][3].stored
    shard = Path(stored.shard)

    shard.write_bytes(shard.read_bytes()[: stored.offset + stored.size // 2])
    with pytest.raises(VideoDecodeError, match=f"{shard.name}, byte {stored.offset}: .*--verify"):
        read_frames(stored, np.arange(stored.frames))
    shard.write_bytes(bytes(10_000_000))
    with pytest.raises(VideoDecodeError, match="--verify"):
        read_frames(stored, np.arange(stored.frames))


@pytest.fixture
def stuck(tmp_path):
    """A pipe that nobody writes to: opening it blocks for ever, as a stuck network drive does."""
    os.mkfifo(tmp_path / "stuck.mp4")
    return VideoRecord(str(tmp_path / "stuck.mp4"), "stuck.mp4")


def test_a_video_that_takes_too_long_costs_itself_alone(videos, stuck, tmp_path):
    report = prepare([*videos, stuck], tmp_path / "out", processes=2, time_limit=5)

    causes = {Path(failure["path"]).name: failure["cause"] for failure in report["failed"]}
    assert causes["stuck.mp4"] == "not decoded within 5 seconds"
    assert report["videos_read"] == 7


def test_a_video_that_takes_its_process_with_it_costs_itself_alone(videos, stuck, tmp_path):
    with ThreadPoolExecutor(1) as thread:
        report = thread.submit(prepare, [*videos, stuck], tmp_path / "out", processes=1)
        with Path(stuck.path).open("wb"):  # waits for the process that decodes, and lets it wait in turn
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


@pytest.mark.end_to_end
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bytes(videos, tmp_path):
    folder = Path(videos[0].path).parent
    prepare(read_records(folder), tmp_path / "undisturbed", videos_per_shard=1, processes=2)
    command = [Path(sys.executable).parent / "hdc-keras", "prepare", "--data", folder]
    options = ["--out", tmp_path / "killed", "--videos-per-shard", "1", "--workers", "2"]

    def start():
        return subprocess.Popen(
            list(map(str, [*command, *options])), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    generator = random.Random(0)
    whole = start()
    began = time.monotonic()
    while not (tmp_path / "killed" / "prepared.json").exists() and whole.poll() is None:
        time.sleep(0.01)
    until_work = time.monotonic() - began
    whole.kill()
    for _ in range(KILLS - 1):
        process = start()
        # Between just before work begins and what is a good deal of it.
        time.sleep(until_work * generator.uniform(0.8, 2.0))
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, f"left running: {alive}"
    last = start()

    assert last.wait(timeout=120) == 0, last.stdout.read()
    left = {name: data for name, data in contents(tmp_path / "killed").items() if not name.endswith(".tmp")}
    assert left == contents(tmp_path / "undisturbed")
