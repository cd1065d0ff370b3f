"""Push to and pull from the Hugging Face Hub, against a stand-in of its HTTP API."""

import json
import shutil

import pytest
import yaml

pytest.importorskip("huggingface_hub", reason="needs pip install hdc-keras[hub]")

from tests.classification.small_classifier import write_classifier
from tests.conftest import run_command
from tests.export.small_exports import small_export
from tests.hub.stand_in import StandIn


@pytest.fixture(scope="module")
def server():
    server = StandIn()
    yield server
    server.shutdown()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """Environment in which commands use the stand-in."""
    for name, value in {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return server


def head_of(card):
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_a_run_is_published_without_local_paths_and_used_after_pulling(hub, smoke_run, tmp_path, class_folder):
    run = shutil.copytree(smoke_run[0], tmp_path / "run")

    done = run_command(tmp_path, "push", "run", "anna/shapes", "--licence", "cc-by-4.0")

    assert done.code == 0 and "Published the run" in done.out, done.out
    files = hub.repositories["anna/shapes"]
    assert hub.private["anna/shapes"] and head_of(files["README.md"])["license"] == "cc-by-4.0"
    newest = max(file.name for file in (run / "checkpoints").glob("step-*.keras"))
    assert {f"checkpoints/{newest}", "checkpoints/best.keras", "config.yaml", "metrics.csv", "README.md"} <= set(files)
    assert not {"videos.csv", "views.png", "environment.json"} & set(files)
    for name, content in files.items():
        if not name.endswith(".keras"):
            assert str(tmp_path).encode() not in content and b"/tmp/" not in content, name

    done = run_command(tmp_path, "pull", "anna/shapes", "--out", "pulled")

    assert done.code == 0 and "Downloaded the run" in done.out, done.out
    assert (tmp_path / "pulled" / "checkpoints" / newest).read_bytes() == (run / "checkpoints" / newest).read_bytes()
    done = run_command(
        tmp_path, "embed", "--run", "pulled", "--data", "videos", "--out", "videos.parquet", "--set", "evaluate.clips=1"
    )
    assert done.code == 0 and (tmp_path / "videos.parquet").exists(), done.out


def test_a_classifier_is_published_and_names_videos_after_pulling(hub, tmp_path, class_folder):
    write_classifier(tmp_path / "model")

    pushed = run_command(tmp_path, "push", "model", "anna/letters", "--public")
    pulled = run_command(tmp_path, "pull", "anna/letters", "--out", "theirs")

    assert pushed.code == pulled.code == 0, pushed.out + pulled.out
    files = hub.repositories["anna/letters"]
    assert set(files) == {"classifier.keras", "classifier.json", "config.yaml", "README.md"}
    assert not hub.private["anna/letters"] and head_of(files["README.md"])["pipeline_tag"] == "video-classification"
    assert (
        "a classifier of 3 classes" in files["README.md"].decode() and "75.0 % are right" in files["README.md"].decode()
    )
    facts = json.loads(files["classifier.json"])
    assert facts["run"] is None and facts["classes"] == ["a", "b", "c"]
    named = run_command(tmp_path, "predict", "--model", "theirs", "--data", "videos", "--out", "named.csv")
    assert named.code == 0 and (tmp_path / "named.csv").exists(), named.out


def test_an_export_is_published_with_its_card(hub, tmp_path, once):
    exported = small_export(once, "onnx")
    folder = tmp_path / "export"
    folder.mkdir()
    for file in exported.path.parent.glob("model.onnx*"):
        shutil.copy(file, folder)

    done = run_command(tmp_path, "push", "export", "anna/onnx")

    assert done.code == 0, done.out
    files = hub.repositories["anna/onnx"]
    assert set(files) == {"model.onnx", "model.onnx.md", "model.onnx.json", "README.md"}
    assert "## Input" in files["README.md"].decode() and files["model.onnx"] == exported.path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("push videos anna/x", "expected a run with a checkpoint, a classifier"),
        ("push nowhere anna/x", "expected a run with a checkpoint, a classifier"),
        ("push videos x", "expected the name of a repository, as in user/name"),
        ("pull anna/nothing --out theirs", "the Hub knows no such repository"),
        ("pull anna/other --out theirs", "anna/other: expected a run with a checkpoint"),
        ("pull anna/other --out videos", "exists and is not overwritten"),
    ],
)
def test_wrong_use_is_explained_and_leaves_nothing(hub, tmp_path, class_folder, arguments, says):
    hub.repositories["anna/other"] = {"README.md": b"# Something else"}
    before = sorted(file.name for file in tmp_path.iterdir())

    done = run_command(tmp_path, *arguments.split())

    assert done.code in (1, 2) and "Traceback" not in done.out and says in " ".join(done.out.split()), done.out
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "hf") == [n for n in before if n != "hf"]


def test_a_wrong_token_and_a_server_that_is_away_are_explained(hub, tmp_path, monkeypatch):
    write_classifier(tmp_path / "model")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = run_command(tmp_path, "push", "model", "anna/refused")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    away = run_command(tmp_path, "pull", "anna/letters", "--out", "theirs")

    for done in (refused, away):
        assert done.code == 1 and "Traceback" not in done.out and "the Hub refused it, or cannot be reached" in done.out
    assert "anna/refused" not in hub.repositories and not (tmp_path / "theirs").exists()
