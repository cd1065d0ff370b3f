"""Whole evaluations of a run: splits, seeds, bad videos, and what the files in `results/` hold."""

import csv
import json
import statistics

import pytest

from hdc_keras import Experiment
from hdc_keras.data.synthetic import MovingShapes, render_video, write_video
from hdc_keras.errors import ConfigError, DataError
from hdc_keras.evaluation.job import evaluate
from hdc_keras.evaluation.splits import load_splits
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.models import build_model

CLASSES = {"Archery": "right", "Basketball": "circling"}


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory):
    """18 real videos in UCF101's layout: two classes, three groups each, and each group is one split's test set."""
    folder = tmp_path_factory.mktemp("ucf")
    spec, lists = MovingShapes(frames=12, size=32), folder / "ucfTrainTestlist"
    lists.mkdir()
    names = {}
    for label, motion in CLASSES.items():
        (folder / "UCF-101" / label).mkdir(parents=True)
        for group in (1, 2, 3):
            for clip in (1, 2, 3):
                name = f"{label}/v_{label}_g{group:02d}_c{clip:02d}.avi"
                write_video(folder / "UCF-101" / name, render_video(spec, "dots", motion, 3 * group + clip))
                names[name] = group
    (lists / "classInd.txt").write_text("1 Archery\n2 Basketball\n")
    for split in (1, 2, 3):
        train = [
            f"{name} {1 + list(CLASSES).index(name.split('/')[0])}" for name, group in names.items() if group != split
        ]
        test = [name for name, group in names.items() if group == split]
        (lists / f"trainlist0{split}.txt").write_text("\n".join(train))
        (lists / f"testlist0{split}.txt").write_text("\n".join(test))
    return folder


def experiment_on(path, **evaluation):
    return Experiment.model_validate(
        {
            "data": {"path": str(path), "frames": 4, "stride": 1, "decode_size": [20, 24], "max_failed_share": 0.3},
            "views": {"size": 16},
            "model": {"backbone": "r3d_tiny"},
            "evaluate": {"clips": 2, "batch_size": 8, "knn_neighbours": 3, "recall_at": [1, 5], **evaluation},
        }
    )


@pytest.fixture(scope="module")
def run(ucf101, tmp_path_factory):
    """A run with one checkpoint, of an untrained network: what is judged here is the judging."""
    experiment = experiment_on(ucf101)
    directory = RunDirectory(tmp_path_factory.mktemp("run") / "run")
    directory.create(experiment)
    directory.checkpoints.save(build_model(experiment), 1, 1)
    return directory


def test_three_official_splits_are_judged_from_features_extracted_once(run, ucf101):
    experiment = experiment_on(ucf101, seeds=2)
    splits, _ = load_splits(experiment, "all")
    told = []

    results = evaluate(run, experiment, splits, ["knn", "linear-severe"], lambda *so_far: told.append(so_far))

    assert [what for what, done, total in told if what.startswith("features") and done == total] == [
        "features, pretrained",
        "features, random weights",
    ]
    for protocol, times in (("knn", 1), ("linear-severe", 2)):
        result = results[protocol]
        assert result["splits"] == ["1", "2", "3"] and result["split"] == {"train": 12, "val": 0, "test": 6}
        assert result["counts"] == {"asked": 18, "decoded": 18, "failed": {}}
        single = [
            repeat["metrics"]["top1"]
            for repeat in result["repeats"]
            if (repeat["network"], repeat["source"]) == ("metrics", "features")
        ]
        assert len(single) == 3 * times
        assert result["metrics"]["label"]["features"]["top1"] == pytest.approx(statistics.mean(single))
        deviation = result["deviation"]["metrics"]["label"]["features"]["top1"]
        assert deviation == pytest.approx(statistics.stdev(single))
        written = json.loads((run.path / "results" / f"{protocol}-{ucf101.name}.json").read_text())
        assert written == result


def test_what_is_said_of_each_test_video_is_kept_and_gives_the_metrics_again(run, ucf101):
    experiment = experiment_on(ucf101)
    result = evaluate(run, experiment, load_splits(experiment, "own")[0], ["retrieval"])["retrieval"]

    with (run.path / "results" / f"retrieval-{ucf101.name}.videos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for network in ("metrics", "random_weights"):
        own = [row for row in rows if row["network"] == network]
        assert len(own) == 6 and {row["source"] for row in own} == {"features"}
        right = sum(row["label"] == row["predicted"] for row in own) / 6
        assert right == pytest.approx(result[network]["label"]["features"]["R@1"])
        for row in own:
            near = row["neighbours"].split("|")
            assert len(near) == 10 and near[0].startswith(row["predicted"])
            assert all("_g01_" not in name for name in near) and "_g01_" in row["video_id"]


def test_a_set_without_official_splits_has_not_three(class_folder_once):
    experiment = experiment_on(class_folder_once)

    with pytest.raises(DataError, match="has no official splits"):
        load_splits(experiment, "all")
    with pytest.raises(ConfigError, match="expected own or all"):
        load_splits(experiment, "2")


@pytest.mark.parametrize("protocol", ["knn", "finetune-rspnet"])
def test_of_37_videos_in_batches_of_8_with_3_broken_34_are_judged_and_3_named(run, tmp_path, protocol):
    rows, spec = [], MovingShapes(frames=12, size=32)
    for number in range(37):
        label, split = list(CLASSES)[number % 2], "train" if number < 15 else "test"
        file = tmp_path / f"{number:02d}.mp4"
        if number in (17, 25, 36):
            file.write_text("no video")
        else:
            write_video(file, render_video(spec, "dots", CLASSES[label], number))
        rows.append(f"{file.name},{label},{split}")
    (tmp_path / "manifest.csv").write_text("path,label,split\n" + "\n".join(rows))
    experiment = experiment_on(tmp_path, finetune_epochs=1, finetune_batch_size=4)
    broken = {str(tmp_path / f"{number}.mp4") for number in (17, 25, 36)}

    result = evaluate(run, experiment, load_splits(experiment, "own")[0], [protocol])[protocol]

    asked = 37 if protocol == "knn" else 22
    assert result["counts"]["asked"] == asked and result["counts"]["decoded"] == asked - 3
    assert set(result["counts"]["failed"]) == broken
    with (run.path / "results" / f"{protocol}-{tmp_path.name}.videos.csv").open(newline="") as file:
        judged = {row["video_id"] for row in csv.DictReader(file)}
    assert judged == {f"{number:02d}.mp4" for number in range(15, 37)} - {"17.mp4", "25.mp4", "36.mp4"}


def test_fine_tuning_says_its_name_version_source_and_what_is_not_as_published(run, ucf101):
    experiment = experiment_on(ucf101, finetune_epochs=1, labels_per_class=4)
    result = evaluate(run, experiment, load_splits(experiment, "own")[0], ["finetune-vcop"])["finetune-vcop"]

    assert (result["protocol"], result["version"]) == ("finetune-vcop", 1) and "VCOP" in result["source"]
    assert result["reduced"]["epochs"] == [150, 1] and result["reduced"]["frames"] == [16, 4]
    assert result["reduced"]["labels_per_class"] == ["all", 4] and result["reduced"]["size"] == [112, 16]
    assert set(result["metrics"]["label"]) == {"fine-tuned"} and set(result["random_weights"]) == {"label"}


def test_unknown_protocols_are_refused_before_anything_is_read(run):
    with pytest.raises(ConfigError, match="unknown protocol `finetune`"):
        evaluate(run, experiment_on("nowhere"), {}, ["finetune"])
