"""From a pretrained network and labelled videos to a classifier in a folder."""

import csv
import json
import os
import shutil
import signal
from dataclasses import replace

import keras
import numpy as np
import pytest

from hdc_keras import HDC, Experiment
from hdc_keras.backbones import R3DTiny
from hdc_keras.classification.directory import ClassifierDirectory
from hdc_keras.classification.job import Request, Validated, is_clearly_lower, make_classifier
from hdc_keras.data.records import read_records, with_splits
from hdc_keras.errors import DataError, RunError, StoppedError
from tests.conftest import write_class_folder

EXPERIMENT = Experiment.model_validate(
    {
        "data": {"frames": 4, "stride": 1, "decode_size": [20, 24], "max_failed_share": 0.5},
        "views": {"size": 16},
        "model": {"backbone": "r3d_tiny"},
        "evaluate": {"clips": 2, "batch_size": 4, "finetune_epochs": 3, "finetune_batch_size": 2},
    }
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes of eight videos; read-only."""
    folder = tmp_path_factory.mktemp("sixteen") / "videos"
    write_class_folder(folder)
    for label in ("across", "around"):
        for number in range(4):
            shutil.copy(folder / label / f"{number}.mp4", folder / label / f"{number + 4}.mp4")
    return folder


@pytest.fixture(scope="module")
def finished(videos, tmp_path_factory):
    """A finished classifier of these videos; read-only. Each worker has videos of its own, and so another one."""
    folder = tmp_path_factory.mktemp("finished") / "made"
    make_classifier(request_for(videos, "frozen"), folder)
    return folder


def request_for(folder, method="auto", is_pretrained=True, **facts):
    records = with_splits(read_records(folder), 0.25, 0)
    keras.utils.set_random_seed(0)
    model = HDC(R3DTiny(), EXPERIMENT.views, EXPERIMENT.contrast)
    experiment = EXPERIMENT.model_copy(update={"data": EXPERIMENT.data.model_copy(update={"path": str(folder)})})
    return Request(model, is_pretrained, experiment, records, "label", method, **facts)


def answers_of(folder):
    with (folder / "test-videos.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_better_way_on_videos_held_out_is_chosen(videos, tmp_path):
    reported = []

    facts = make_classifier(request_for(videos), tmp_path / "made", lambda what, done, total: reported.append(what))

    assert facts["classes"] == ["across", "around"] and facts["candidates"].keys() == {"frozen", "whole"}
    losses = {name: one["loss"] for name, one in facts["candidates"].items()}
    assert facts["chosen"] == "frozen" or losses["whole"] < losses["frozen"]
    counts = {side: one["videos"] for side, one in facts["videos"].items()}
    assert counts == {"training": 10, "validation": 2, "test": 4}
    assert len(answers_of(tmp_path / "made")) == facts["test"]["videos"] == 4
    right = np.mean([row["label"] == row["predicted"] for row in answers_of(tmp_path / "made")])
    assert facts["test"]["top1"] == right and facts["test"]["interval"][0] <= right <= facts["test"]["interval"][1]
    assert {"features", "training", "validation, frozen", "scoring the test videos"} <= set(reported)
    names = {file.name for file in (tmp_path / "made").iterdir()}
    assert names == {"classifier.keras", "classifier.json", "config.yaml", "test-videos.csv", "training.csv"}
    directory = ClassifierDirectory(tmp_path / "made")
    assert directory.facts() == json.loads(json.dumps(facts)) and directory.load().classes == facts["classes"]
    assert directory.experiment().data.path == str(videos)


@pytest.mark.parametrize(
    ("whole", "frozen", "groups", "expected"),
    [
        ([0.1, 0.2, 0.3], [1.0, 1.2, 1.1], "abc", True),
        ([1.0, 1.2, 1.1], [0.1, 0.2, 0.3], "abc", False),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "abc", False),
        ([0.1, 2.0, 0.3], [1.0, 1.0, 1.0], "abc", False),  # lower by 0.2, with a standard error of 0.6
        ([0.1, 0.2, 0.3], [1.0, 1.2, 1.1], "aaa", False),  # one group says nothing of another
        ([0.1, 0.1, 1.1, 1.1], [0.9, 0.9, 0.8, 0.8], "abcd", False),  # lower by 0.25, with an error of 0.32
        ([0.1, 0.1, 0.1, 1.0], [0.9, 0.9, 0.9, 0.8], "abcd", True),  # lower by 0.55, with an error of 0.25 ...
        ([0.1, 0.1, 0.1, 1.0], [0.9, 0.9, 0.9, 0.8], "aaab", True),  # ... and of 0.38 if three are of one group
        ([0.1, 0.1, 0.1, 1.4], [0.9, 0.9, 0.9, 0.8], "aaab", False),  # lower by 0.45, with an error of 0.53
    ],
)
def test_training_is_chosen_if_it_is_better_by_more_than_a_standard_error(whole, frozen, groups, expected):
    one, other = (Validated(np.array(losses), np.array(losses) > 0, list(groups)) for losses in (whole, frozen))

    assert is_clearly_lower(one, other) is expected


@pytest.mark.parametrize(("better", "expected"), [(True, "whole"), (False, "frozen")])
def test_the_choice_decides_which_network_is_kept(videos, tmp_path, monkeypatch, better, expected):
    monkeypatch.setattr("hdc_keras.classification.job.is_clearly_lower", lambda one, other: better)

    facts = make_classifier(request_for(videos), tmp_path / "made")

    assert facts["chosen"] == expected
    before = request_for(videos).model.backbone.get_weights()
    after = ClassifierDirectory(tmp_path / "made").load().backbone.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)) == (expected == "frozen")


def test_features_alone_are_enough_if_that_is_asked(videos, tmp_path):
    facts = make_classifier(request_for(videos, "frozen"), tmp_path / "made")

    # No videos are held out, because there is nothing to choose, and the backbone is as it was.
    assert facts["chosen"] == "frozen" and facts["videos"]["training"]["videos"] == 12 and not facts["candidates"]
    loaded, given = ClassifierDirectory(tmp_path / "made").load(), request_for(videos).model
    for now, before in zip(loaded.backbone.get_weights(), given.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(now, before)
    assert not (tmp_path / "made" / "training.csv").exists()


def test_the_whole_network_is_trained_if_that_is_asked_or_it_is_not_pretrained(videos, tmp_path):
    asked = make_classifier(request_for(videos, "whole"), tmp_path / "asked")
    scratch = make_classifier(request_for(videos, is_pretrained=False), tmp_path / "scratch")

    assert asked["chosen"] == scratch["chosen"] == "whole"
    assert asked["candidates"].keys() == {"frozen", "whole"} and scratch["candidates"].keys() == {"whole"}
    assert asked["pretrained"] and not scratch["pretrained"]
    before = request_for(videos).model.backbone.get_weights()
    after = ClassifierDirectory(tmp_path / "asked").load().backbone.get_weights()
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-4


def test_a_stopped_job_resumes_to_the_same_classifier_and_a_finished_one_is_not_repeated(videos, tmp_path):
    def stop_in_the_second_epoch(what, done, total):
        if what == "training" and done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = make_classifier(request_for(videos, "whole"), tmp_path / "whole")
    with pytest.raises(StoppedError):
        make_classifier(request_for(videos, "whole"), tmp_path / "made", stop_in_the_second_epoch)
    assert not (tmp_path / "made" / "classifier.json").exists()
    with pytest.raises(RunError, match="is not finished: repeat `hdc-keras finetune`"):
        ClassifierDirectory(tmp_path / "made").facts()

    facts = make_classifier(request_for(videos, "whole"), tmp_path / "made")
    reported = []
    again = make_classifier(request_for(videos, "whole"), tmp_path / "made", lambda *done: reported.append(done))

    assert facts["candidates"]["whole"] == pytest.approx(whole["candidates"]["whole"], abs=1e-4)
    assert again == json.loads(json.dumps(facts)) and not reported


def test_another_classifier_is_not_overwritten(videos, tmp_path):
    make_classifier(request_for(videos, "frozen"), tmp_path / "made")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-anna.txt").write_text("Dear Anna")

    with pytest.raises(RunError, match="holds another classifier"):
        make_classifier(request_for(videos, "auto"), tmp_path / "made")
    with pytest.raises(RunError, match="holds no classifier"):
        make_classifier(request_for(videos, "auto"), tmp_path / "letters")
    assert ClassifierDirectory(tmp_path / "made").facts()["chosen"] == "frozen"


def test_damaged_videos_are_named_and_left_out(videos, tmp_path):
    folder = shutil.copytree(videos, tmp_path / "videos")
    request = request_for(folder, "frozen")
    damaged = [next(one for one in request.records if one.split == split) for split in ("train", "test")]
    for record in damaged:
        open(record.path, "w").write("no video")  # noqa: PTH123, SIM115

    facts = make_classifier(request, tmp_path / "made")

    assert sorted(facts["failed"]) == sorted(record.path for record in damaged)
    assert facts["test"]["videos"] == 3


def test_test_videos_that_cannot_be_decoded_end_the_job(videos, tmp_path):
    folder = shutil.copytree(videos, tmp_path / "videos")
    request = request_for(folder, "frozen")
    for record in request.records:
        if record.split == "test":
            open(record.path, "w").write("no video")  # noqa: PTH123, SIM115
    data = request.experiment.data.model_copy(update={"max_failed_share": 1.0})

    with pytest.raises(DataError, match="none of the test videos can be decoded"):
        make_classifier(
            replace(request, experiment=request.experiment.model_copy(update={"data": data})), tmp_path / "made"
        )
    assert not (tmp_path / "made" / "classifier.json").exists()


def test_another_process_that_makes_a_classifier_there_is_named(videos, tmp_path):
    with (
        ClassifierDirectory(tmp_path / "made").making("another request"),
        pytest.raises(RunError, match="is being made by process"),
    ):
        make_classifier(request_for(videos, "frozen"), tmp_path / "made")


def test_unfinished_work_of_another_command_is_kept(videos, tmp_path):
    directory = ClassifierDirectory(tmp_path / "made")
    with directory.making("another request"):
        (directory.work_folder / "head.npz").write_text("hours of work")

    with pytest.raises(RunError, match="holds the unfinished work of another command"):
        make_classifier(request_for(videos, "frozen"), tmp_path / "made")
    assert (directory.work_folder / "head.npz").read_text() == "hours of work"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("classifier.keras", None, "it is missing"),
        ("classifier.keras", "no network", "not a `.keras` file"),
        ("test-videos.csv", None, "No such file"),
        ("test-videos.csv", "video_id,label\n1,a\n", "score"),
        ("config.yaml", None, "it is missing"),
        ("classifier.json", "{", "is damaged"),
        ("classifier.json", '{"format": 1}', "is damaged"),
        ("classifier.json", '{"format": 0}', "made by another version"),
    ],
)
def test_a_damaged_classifier_is_not_taken_for_a_finished_one(videos, finished, tmp_path, name, content, says):
    folder = shutil.copytree(finished, tmp_path / "made")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)

    with pytest.raises(RunError, match=says):
        make_classifier(request_for(videos, "frozen"), folder)


def test_classes_that_it_cannot_name_are_told(videos, tmp_path):
    folder = shutil.copytree(videos, tmp_path / "videos")
    request = request_for(folder, "frozen")
    for record in request.records:
        if record.label == "across" and record.split == "train":
            open(record.path, "w").write("no video")  # noqa: PTH123, SIM115
    records = [
        replace(one, labels={"label": "third"}) if one.video_id == "around/0.mp4" else one for one in request.records
    ]
    records = [replace(one, split="train") if one.label == "third" else one for one in records]
    new = [replace(one, labels={"label": "fourth"}) for one in records if one.split == "test"][:1]
    records = [new[0] if one.video_id == new[0].video_id else one for one in records]
    data = request.experiment.data.model_copy(update={"max_failed_share": 0.9})
    experiment = request.experiment.model_copy(update={"data": data})

    facts = make_classifier(replace(request, records=records, experiment=experiment), tmp_path / "made")

    tested = sum(one.split == "test" and one.label == "across" for one in records)
    assert facts["untrained_classes"] == {"across": tested, "fourth": 1}


def test_a_folder_of_other_things_is_not_taken_for_an_unfinished_classifier(videos, tmp_path):
    (tmp_path / "mine" / "unfinished").mkdir(parents=True)
    (tmp_path / "mine" / "thesis.txt").write_text("mine")

    with pytest.raises(RunError, match="holds no classifier"):
        make_classifier(request_for(videos, "frozen"), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_settings_without_influence_do_not_make_another_classifier(videos):
    request = request_for(videos)

    def with_values(section, **values):
        part = getattr(request.experiment, section).model_copy(update=values)
        return replace(request, experiment=request.experiment.model_copy(update={section: part})).digest()

    assert with_values("data", workers=3, cache_gb=0.0) == with_values("evaluate", knn_neighbours=3) == request.digest()
    others = (
        with_values("data", frames=5),
        with_values("evaluate", clips=3),
        replace(request, method="whole").digest(),
    )
    assert len({request.digest(), *others}) == 4


def test_too_few_groups_to_choose_by_are_told(videos, tmp_path):
    request = request_for(videos)
    # One group of each class for training, so that nothing can be held out.
    records = [replace(one, group=one.label) if one.split == "train" else one for one in request.records]

    facts = make_classifier(replace(request, records=records), tmp_path / "made")

    assert facts["chosen"] == "frozen" and "too few groups" in facts["note"] and not facts["candidates"]
    assert facts["videos"]["training"]["videos"] == 12
