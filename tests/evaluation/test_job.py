"""Complete evaluations of a run: splits, seeds, broken videos, and the content of the files in `results/`."""

import csv
import json
import re
import shutil
import statistics
from collections import Counter
from dataclasses import replace

import pytest

from hdc_keras.data.loading import FrameStore
from hdc_keras.data.preparing import Part
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import ConfigError, DataError, RunError
from hdc_keras.evaluation.job import evaluate
from hdc_keras.evaluation.splits import load_splits
from hdc_keras.files import digest
from hdc_keras.finetuning.recipes import FINE_TUNING
from hdc_keras.results.store import read_results
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.models import build_model
from tests.evaluation.conftest import BROKEN, experiment_on


def evaluate_own_split(run, experiment, protocol):
    return evaluate(run, experiment, load_splits(experiment, "own")[0], [protocol])[protocol]


def predictions(run, name):
    """The rows of `results/{name}.videos.csv`."""
    with (run.path / "results" / f"{name}.videos.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_three_official_splits_are_evaluated_on_features_extracted_once(run, ucf101):
    experiment = experiment_on(ucf101, seeds=2)
    splits, _ = load_splits(experiment, "all")
    reported = []

    results = evaluate(run, experiment, splits, ["knn", "linear-severe"], lambda *progress: reported.append(progress))

    assert [what for what, done, total in reported if what.startswith("features") and done == total] == [
        "features, pretrained",
        "features, random weights",
    ]
    for protocol, seeds in (("knn", 1), ("linear-severe", 2)):
        result = results[protocol]
        assert result["splits"] == ["1", "2", "3"] and result["split"] == {"train": 12, "val": 0, "test": 6}
        assert result["counts"] == {"asked": 18, "decoded": 18, "failed": {}}
        repeats = [
            repeat["metrics"]["top1"]
            for repeat in result["repeats"]
            if (repeat["network"], repeat["source"]) == ("metrics", "features")
        ]
        assert len(repeats) == 3 * seeds
        assert result["metrics"]["label"]["features"]["top1"] == pytest.approx(statistics.mean(repeats))
        deviation = result["deviation"]["metrics"]["label"]["features"]["top1"]
        assert deviation == pytest.approx(statistics.stdev(repeats))
        written = json.loads((run.path / "results" / f"{result['name']}.json").read_text())
        assert written == result


def test_saved_predictions_reproduce_the_metrics(run, ucf101):
    result = evaluate_own_split(run, experiment_on(ucf101), "retrieval")

    rows = predictions(run, result["name"])
    for network in ("metrics", "random_weights"):
        network_rows = [row for row in rows if row["network"] == network]
        assert len(network_rows) == 6 and {row["source"] for row in network_rows} == {"features"}
        accuracy = sum(row["label"] == row["predicted"] for row in network_rows) / 6
        assert accuracy == pytest.approx(result[network]["label"]["features"]["R@1"])
        for row in network_rows:
            neighbours = row["neighbours"].split("|")
            assert len(neighbours) == 10 and neighbours[0].startswith(row["predicted"])
            assert all("_g01_" not in name for name in neighbours) and "_g01_" in row["video_id"]


def test_confusions_are_counted_from_the_predictions_of_all_splits_and_seeds(run, ucf101):
    experiment = experiment_on(ucf101, seeds=2)

    result = evaluate(run, experiment, load_splits(experiment, "all")[0], ["linear-severe"])["linear-severe"]

    counted = Counter(
        (row["label"], row["predicted"])
        for row in predictions(run, result["name"])
        if row["network"] == "metrics" and row["source"] == "features"
    )
    confusions = {
        (label, predicted): count
        for label, counts in result["confusions"]["label"].items()
        for predicted, count in counts.items()
    }
    assert confusions == counted and sum(counted.values()) == 3 * 2 * 6
    assert result["untrained_classes"] == {}


def test_test_classes_without_training_videos_are_named(run, partly_broken):
    experiment = experiment_on(partly_broken)
    ((name, videos),) = load_splits(experiment, "own")[0].items()
    tested = [record for record in videos if record.split == "test" and record.video_id not in BROKEN]
    unknown = [replace(record, labels={"label": "unknown"}) for record in tested[:3]]
    by_id = {record.video_id: record for record in unknown}
    records = [by_id.get(record.video_id, record) for record in videos]

    result = evaluate(run, experiment, {name: records}, ["knn"])["knn"]

    assert result["untrained_classes"] == {"label": {"unknown": 3}}
    assert "unknown" not in result["confusions"]["label"]["unknown"]


@pytest.mark.parametrize(
    "protocol, differences",
    [
        ("linear", set()),
        ("knn", set()),
        ("retrieval", set()),
        ("retrieval-vcop", {"frames", "size", "views", "pooling of the last level", "pixels"}),
        ("linear-severe", {"frames", "stride", "size", "views", "batch norm in training", "epoch that is tested"}),
        ("linear-cvrl", {"frames", "stride", "size", "views", "training clips"}),
    ],
)
def test_differences_of_frozen_protocols_from_their_publications_are_in_the_result(run, ucf101, protocol, differences):
    result = evaluate_own_split(run, experiment_on(ucf101, labels_per_class=3), protocol)

    assert differences | {"labels_per_class"} <= set(result["reduced"])
    assert result["reduced"]["labels_per_class"] == ["all", 3]
    assert bool(differences) != result["source"].startswith("our choice")
    if differences:
        assert result["reduced"]["views"][1] == "2x1" and result["reduced"]["frames"][1] == 4


def require_34_predictions_and_3_failures(run, folder, protocol, result, asked):
    """Check the counts, that the broken videos are listed, and that every other test video has a prediction."""
    assert result["counts"]["asked"] == asked and result["counts"]["decoded"] == asked - 3
    assert set(result["counts"]["failed"]) == {str(folder / name) for name in BROKEN}
    predicted = {row["video_id"] for row in predictions(run, result["name"])}
    assert predicted == {f"{number:02d}.mp4" for number in range(15, 37)} - set(BROKEN)


def test_of_37_videos_in_batches_of_8_with_3_broken_34_are_evaluated(run, partly_broken):
    result = evaluate_own_split(run, experiment_on(partly_broken), "knn")

    require_34_predictions_and_3_failures(run, partly_broken, "knn", result, asked=37)


def test_fine_tuning_counts_test_videos_and_reports_differences_from_the_publication(run, partly_broken):
    experiment = experiment_on(partly_broken, finetune_epochs=1, finetune_batch_size=4, labels_per_class=4)

    result = evaluate_own_split(run, experiment, "finetune-vcop")

    require_34_predictions_and_3_failures(run, partly_broken, "finetune-vcop", result, asked=22)
    assert (result["protocol"], result["version"]) == (
        "finetune-vcop",
        FINE_TUNING["finetune-vcop"].version,
    ) and "VCOP" in result["source"]
    reduced = result["reduced"]
    assert (reduced["epochs"], reduced["frames"], reduced["size"]) == ([150, 1], [16, 4], [112, 16])
    assert reduced["labels_per_class"] == ["all", 4]
    assert reduced["validation clip"] == ["random, with a random crop", "the middle one, with a central crop"]
    assert set(result["metrics"]["label"]) == {"fine-tuned"} and set(result["random_weights"]) == {"label"}


def test_whatever_changes_a_figure_changes_the_name_of_the_result(run, ucf101, partly_broken, tmp_path):
    run = RunDirectory(shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("results")))
    splits = load_splits(experiment_on(ucf101), "all")[0]
    twin = shutil.copytree(partly_broken, tmp_path / "twin" / ucf101.name)  # another set of the same name

    names = [
        evaluate(run, experiment, videos, ["knn"])["knn"]["name"]
        for experiment, videos in (
            (experiment_on(ucf101), {"1": splits["1"]}),
            (experiment_on(ucf101), {"2": splits["2"]}),
            (experiment_on(ucf101), splits),
            (experiment_on(ucf101, labels_per_class=3), {"1": splits["1"]}),
            (experiment_on(ucf101, crops=3), {"1": splits["1"]}),
            (experiment_on(ucf101, clips=1), {"1": splits["1"]}),
            (experiment_on(ucf101, knn_neighbours=2), {"1": splits["1"]}),
            (with_frames(experiment_on(ucf101), 2), {"1": splits["1"]}),
            (experiment_on(twin), load_splits(experiment_on(twin), "own")[0]),
        )
    ]
    run.checkpoints.save(build_model(experiment_on(ucf101).model_copy(update={"seed": 1})), 2, 2)
    names.append(evaluate(run, experiment_on(ucf101), {"1": splits["1"]}, ["knn"])["knn"]["name"])

    assert len(set(names)) == 10 == len(list((run.path / "results").glob("*.json")))
    assert all(name.startswith(f"knn-{ucf101.name}-") for name in names)
    again = evaluate(run, experiment_on(ucf101), {"1": splits["1"]}, ["knn"])["knn"]
    assert again["name"] == names[-1] and (again["frames"], again["decode_size"]) == (4, [20, 24])


def with_frames(experiment, frames):
    return experiment.model_copy(update={"data": experiment.data.model_copy(update={"frames": frames})})


def test_relabelled_videos_are_fine_tuned_again(run, ucf101):
    experiment = experiment_on(ucf101, finetune_epochs=1, finetune_batch_size=4)
    records = load_splits(experiment, "own")[0]["1"]
    before = evaluate(run, experiment, {"1": records}, ["finetune-vcop"])["finetune-vcop"]
    classes = sorted({record.label for record in records})
    swapped = [replace(record, labels={"label": classes[record.label == classes[0]]}) for record in records]

    after = evaluate(run, experiment, {"1": swapped}, ["finetune-vcop"])["finetune-vcop"]

    assert before["name"] != after["name"]
    assert len(list((run.path / "fine-tuning").iterdir())) >= 4  # both networks, both times


def test_another_network_than_the_pretrained_one_is_refused(run, ucf101):
    experiment = experiment_on(ucf101)
    other = experiment.model_copy(update={"views": experiment.views.model_copy(update={"size": 20})})

    with pytest.raises(ConfigError, match=r"views\.size: .* was pretrained with 16, .* Received: 20"):
        evaluate(run, other, load_splits(experiment, "own")[0], ["knn"])


def test_a_read_only_run_is_evaluated_into_another_folder(run, ucf101, tmp_path):
    run = RunDirectory(
        shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("results", "features"))
    )
    files = sorted(run.path.rglob("*"))
    experiment, out = experiment_on(ucf101), tmp_path / "out"

    result = evaluate(run, experiment, load_splits(experiment, "own")[0], ["knn"], out=out)["knn"]

    assert sorted(run.path.rglob("*")) == files
    assert [saved.values for saved in read_results(out)] == [result]
    other = RunDirectory(tmp_path / "other")
    other.create(experiment.model_copy(update={"seed": 1}))
    other.checkpoints.save(build_model(experiment), 1, 1)
    with pytest.raises(ConfigError, match="holds the evaluation of another run"):
        evaluate(other, experiment, load_splits(experiment, "own")[0], ["knn"], out=out)


def test_a_run_that_is_still_trained_may_delete_the_checkpoint_meanwhile(run, ucf101, tmp_path):
    trained = RunDirectory(shutil.copytree(run.path, tmp_path / "trained"))
    (checkpoint,) = trained.checkpoints.files()
    loaded = digest(checkpoint)
    experiment = experiment_on(ucf101)

    results = evaluate(
        trained,
        experiment,
        load_splits(experiment, "own")[0],
        ["knn"],
        progress=lambda *_: checkpoint.unlink(missing_ok=True),
    )

    assert not checkpoint.exists()
    assert (results["knn"]["checkpoint"], results["knn"]["weights_sha256"]) == (checkpoint.name, loaded)


def test_a_part_extracts_its_features_only(run, ucf101, tmp_path, monkeypatch):
    monkeypatch.setattr("hdc_keras.features.extraction.VIDEOS_PER_PART", 5)
    experiment = experiment_on(ucf101)
    splits = load_splits(experiment, "own")[0]
    reported = []

    for number in (1, 2):
        assert evaluate(run, experiment, splits, ["knn"], out=tmp_path / "parts", part=Part(number, 2)) == {}
    assert not list((tmp_path / "parts" / "results").glob("*.json"))
    evaluate(run, experiment, splits, ["knn"], lambda *task: reported.append(task), out=tmp_path / "parts")

    evaluate(run, experiment, splits, ["knn"], out=tmp_path / "whole")
    assert reported[:2] == [("features, pretrained", 18, 18), ("features, random weights", 18, 18)]
    whole, parts = (
        {file.name: file.read_bytes() for file in (tmp_path / name / "results").iterdir()}
        for name in ("whole", "parts")
    )
    assert whole == parts
    with pytest.raises(ConfigError, match="--part divides the extraction of features, which `finetune-vcop`"):
        evaluate(run, experiment, splits, ["knn", "finetune-vcop"], part=Part(1, 2))


def test_a_protocol_that_needs_views_decodes_nothing_again(run, ucf101, tmp_path, monkeypatch):
    experiment = experiment_on(ucf101)
    splits = load_splits(experiment, "own")[0]
    evaluate(run, experiment, splits, ["knn"], out=tmp_path)
    monkeypatch.setattr(FrameStore, "clips", None)

    assert evaluate(run, experiment, splits, ["linear-cvrl"], out=tmp_path)


def test_unknown_protocols_are_refused_before_anything_is_read(run):
    with pytest.raises(ConfigError, match="unknown protocol `finetune`"):
        evaluate(run, experiment_on("nowhere"), {}, ["finetune"])


def test_a_run_that_cannot_be_written_is_refused_before_any_work(run, ucf101, tmp_path):
    experiment = experiment_on(ucf101)
    run = RunDirectory(shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("results")))
    (run.path / "results").write_text("a file in the place of the folder")
    reported = []

    with pytest.raises(RunError, match=r"results cannot be written .*then repeat the command"):
        evaluate(run, experiment, load_splits(experiment, "own")[0], ["knn"], lambda *task: reported.append(task))

    assert not reported


@pytest.mark.parametrize(
    ("protocol", "labels", "message"),
    [
        ("knn", ["a", "b", "", "b"], "1 of 4 videos have no `label`, such as video2"),
        ("finetune-vcop", ["a", "b", "a", ""], "1 of 4 videos have no `label`, such as video3"),
        ("linear", ["", "", "", ""], "the videos have no labels"),
        ("retrieval", ["a", "a", "a", "b"], "all training videos have the same `label`, a"),
        ("factors", ["a", "b", "a", "b"], "the videos have only `label`"),
    ],
)
def test_labels_are_checked_before_anything_is_extracted(run, protocol, labels, message):
    # None of the files exists, so the evaluation would fail with another error if it read one.
    records = [
        VideoRecord(f"nowhere/{number}.mp4", f"video{number}", {"label": label} if label else {}, split)
        for number, (label, split) in enumerate(zip(labels, ("train", "train", "train", "test"), strict=True))
    ]
    reported = []

    with pytest.raises(DataError, match=re.escape(message)):
        evaluate(run, experiment_on("nowhere"), {"1": records}, ["knn", protocol], lambda *task: reported.append(task))

    assert not reported


@pytest.mark.parametrize("protocol", ["knn", "finetune-vcop"])
def test_two_videos_that_share_one_broken_file_are_left_out(run, partly_broken, protocol):
    experiment = experiment_on(partly_broken, finetune_epochs=1, finetune_batch_size=4)
    records = load_splits(experiment, "own")[0]["1"]
    twin = next(record for record in records if record.video_id == BROKEN[0])

    result = evaluate(run, experiment, {"1": [*records, replace(twin, video_id="twin")]}, [protocol])[protocol]

    asked = {"knn": 38, "finetune-vcop": 23}[protocol]
    counts = result["counts"]
    assert (counts["asked"], counts["decoded"], len(counts["failed"])) == (asked, asked - 4, 3)
