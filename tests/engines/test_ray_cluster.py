"""Jobs on a real Ray cluster of two nodes, whose second one is killed half-way."""

import csv
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import keras
import pyarrow.parquet as pq
import pytest

from hdc_keras import HDC, R3D
from hdc_keras.config import Experiment
from hdc_keras.data.preparing import prepare
from hdc_keras.data.records import read_records
from hdc_keras.engines import engine_on, ray_cluster
from hdc_keras.engines.work import Tally
from hdc_keras.errors import ConfigError, RunError
from hdc_keras.features.embed_job import embed
from hdc_keras.runs.directory import RunDirectory
from tests.classification.small_classifier import write_classifier
from tests.conftest import call_command
from tests.engines.logged_work import DeadlyWork, LoggingEngine
from tests.engines.ray_nodes import head_node, node

PARTS = 8


@pytest.fixture(scope="module")
def addresses():
    """Addresses of a cluster of one node. The name of its folder is short, because Ray puts sockets into it."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name, head_node(Path(name)) as two:
        yield two


@pytest.fixture
def second(addresses, tmp_path):
    """The raylet of a second node."""
    with node([f"--address={addresses[0]}"], tmp_path / "second.log") as raylet:
        yield raylet


@pytest.fixture
def records(shapes_folder):
    return sorted(read_records(shapes_folder)[: 2 * PARTS], key=lambda record: record.video_id)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def kill_half_way(raylet, log: Path) -> threading.Thread:
    """Kill a raylet as soon as two parts are finished and a worker of it has begun one."""

    def kill():
        while True:
            lines = log.read_text().split("\n") if log.exists() else []
            workers = {str(raylet.pid)}
            if sum("finished" in line for line in lines) >= 2 and any(
                line.split()[-1:] == [*workers] for line in lines
            ):
                return raylet.send_signal(signal.SIGKILL)
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def require_each_part_finished_once(log: Path) -> None:
    lines = [line.split() for line in log.read_text().splitlines()]
    finished = Counter(number for word, number, _ in lines if word == "finished")
    # After it is finished, no part begins again.
    last = {number: place for place, (word, number, _) in enumerate(lines) if word == "finished"}
    begun_later = [number for place, (word, number, _) in enumerate(lines) if word == "begun" and place > last[number]]
    assert finished == {str(number): 1 for number in range(PARTS)} and not begun_later


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_leaves_nothing_half_written(addresses, shapes_folder, tmp_path):
    command = [str(Path(sys.executable).parent / "hdc-keras"), "prepare", "--data", str(shapes_folder)]
    out = tmp_path / "stopped"
    stopped = subprocess.Popen(
        [*command, "--out", str(out), "--videos-per-shard", "2", "--on", addresses[1]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while stopped.poll() is None and len(list(out.glob("*.json"))) < 3:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    said, _ = stopped.communicate(timeout=90)
    assert stopped.returncode == 130 and "Finished parts are kept" in said, said
    assert 2 <= len(list(out.glob("*.tfrecord"))) < 36
    assert not list(out.glob(".*")), list(out.iterdir())


@pytest.mark.slow
def test_a_part_that_kills_workers_and_a_folder_that_they_do_not_see_end_the_job(addresses, shapes_folder, tmp_path):
    with engine_on(addresses[0]) as cluster:
        (tmp_path / "deadly").mkdir()
        with pytest.raises(RunError, match="part 1 ended 3 Ray workers, so it is not tried again"):
            work = DeadlyWork(tmp_path / "deadly")
            cluster.run(work, {0: "a", 1: "b", 2: "c"}, None, Tally(lambda *_: None).report)
        assert not (tmp_path / "deadly" / "b").exists() and not list((tmp_path / "deadly").glob(".*"))

        (tmp_path / "mine").mkdir()
        number = os.open(tmp_path / "mine", os.O_RDONLY)
        # A path that means something else in every process, as a local disk does on every machine.
        private = Path(f"/proc/self/fd/{os.dup2(number, 700)}/out")
        with pytest.raises(RunError, match=r"worker on .* cannot see /proc/self/fd/700/out.*All nodes must share it"):
            prepare(read_records(shapes_folder)[:2], private, engine=cluster)
        os.close(number)
        os.close(700)
    assert names(tmp_path / "mine" / "out") == {"prepared.json"}


@pytest.mark.slow
def test_sets_prepared_on_a_cluster_have_the_same_bytes_though_a_node_was_killed(
    addresses, second, shapes_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(Path(shapes_folder).parent)
    named = sorted(read_records(Path(shapes_folder).name), key=lambda record: record.video_id)
    records = [replace(record, path=os.path.relpath(record.path)) for record in named[: 2 * PARTS]]
    options = {"size": 32, "videos_per_shard": 2}
    prepare(records, tmp_path / "here", processes=2, **options)
    progress = []

    with engine_on(addresses[0]) as cluster:
        killing = kill_half_way(second, tmp_path / "log")
        engine = LoggingEngine(cluster, tmp_path / "log")
        prepare(records, tmp_path / "ray", engine=engine, progress=lambda *done: progress.append(done), **options)

    killing.join(timeout=0)
    assert not second.is_running() and not killing.is_alive()
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert progress[0] == (0, 16, 0) and progress[-1] == (16, 16, 0)
    require_each_part_finished_once(tmp_path / "log")


@pytest.mark.slow
def test_videos_embedded_on_a_cluster_have_the_same_vectors_though_a_node_was_killed(
    addresses, second, records, tmp_path, monkeypatch
):
    monkeypatch.setattr("hdc_keras.features.extraction.VIDEOS_PER_PART", 2)
    experiment = Experiment.model_validate(
        {
            "data": {"frames": 4, "stride": 1, "decode_size": (20, 20)},
            "views": {"size": 16},
            "model": {"backbone": "r3d_tiny"},
            "contrast": {"embedding_dim": 8},
            "evaluate": {"clips": 2, "batch_size": 2},
        }
    )
    keras.utils.set_random_seed(0)
    run = RunDirectory(tmp_path / "run")
    run.create(experiment)
    run.checkpoints.save(
        HDC(R3D([4, 4, 6, 8], [1, 1, 1, 1], name="r3d_tiny"), experiment.views, experiment.contrast), 1, 1
    )
    embed(run, experiment, records, tmp_path / "here.parquet", store=tmp_path / "features-here")

    with engine_on(addresses[0]) as cluster:
        killing = kill_half_way(second, tmp_path / "log")
        engine = LoggingEngine(cluster, tmp_path / "log")
        embed(run, experiment, records, tmp_path / "ray.parquet", store=tmp_path / "features", engine=engine)

    killing.join(timeout=0)
    assert not second.is_running() and not killing.is_alive()
    here, ray = (pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in ("here", "ray"))
    assert here.keys() == ray.keys() and here["video_id"] == ray["video_id"]
    for name in ("P2", "P5", "P3_spatial", "embedding"):
        for mine, theirs in zip(here[name], ray[name], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)
    require_each_part_finished_once(tmp_path / "log")


@pytest.mark.slow
def test_classes_are_the_same_on_a_cluster(addresses, class_folder, tmp_path):
    command = ["predict", "--model", write_classifier(tmp_path / "classifier"), "--data", class_folder]
    rows = {}
    for place in ("here", addresses[0]):
        file = tmp_path / f"{place[:4]}.csv"
        done = call_command(tmp_path, *command, "--out", file, "--on", place)
        assert done.code == 0 and "Classified 8 videos" in done.out, done.out
        with file.open(newline="") as stream:
            rows[place] = list(csv.DictReader(stream))

    for here, there in zip(*rows.values(), strict=True):
        assert [here[name] for name in ("video_id", "class_1")] == [there[name] for name in ("video_id", "class_1")]
        assert float(here["score_1"]) == pytest.approx(float(there["score_1"]), abs=1e-6)
    assert not list(tmp_path.glob(".*unfinished*"))


def test_an_address_without_a_cluster_is_refused():
    with pytest.raises(RunError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 "), engine_on("127.0.0.1:1"):
        raise AssertionError
    for place in ("there", "http://127.0.0.1:8265", "127.0.0.1:99999", "ray://"):
        with pytest.raises(ConfigError, match="expected here, ray, HOST:PORT"), engine_on(place):
            raise AssertionError


def test_without_ray_installed_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install 'hdc-keras\[ray\]'"), engine_on("ray"):
        raise AssertionError
