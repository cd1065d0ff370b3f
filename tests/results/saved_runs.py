"""Writes run directories as `pretrain` and `evaluate` do, without training, for tests of comparisons and reports."""

import csv
import json
from collections import defaultdict
from statistics import mean

import numpy as np

from hdc_keras.config import Experiment, dump_experiment

COLUMNS = ("network", "column", "source", "split", "seed", "video_id", "label", "predicted", "neighbours")


def write_run(folder, experiment=None):
    """Turn a folder into a run directory by writing its config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_experiment(experiment or Experiment(name=folder.name)))
    return folder


def judgements(correct, network="metrics", column="label", source="features", split="1", seed=0):
    """Rows of `.videos.csv`.

    Args:
        correct: whether the prediction is correct, by video id. The class of a video is the part before its "-".
        network: key of the network (see `JudgedVideo`).
        column: label column.
        source: source of the features.
        split: name of the split.
        seed: seed of the judge.
    """
    return [
        {
            "network": network,
            "column": column,
            "source": source,
            "split": split,
            "seed": seed,
            "video_id": video,
            "label": video.partition("-")[0],
            "predicted": video.partition("-")[0] if is_correct else "other",
            "neighbours": "",
        }
        for video, is_correct in correct.items()
    ]


def write_result(run, protocol, videos, dataset="moving-shapes", stem=None, **values):
    """Write `results/{protocol}-{data set}.json` and its `.videos.csv`.

    The metrics, top-1 or R@1, are computed from `videos`, and averaged over splits and seeds. `values` replace or add
    keys of the JSON file.
    """
    metric = "R@1" if protocol == "retrieval" else "top1"
    shares = defaultdict(list)
    for key, group in _grouped(videos).items():
        shares[key[:3]].append(mean(video["label"] == video["predicted"] for video in group))
    by_network = defaultdict(lambda: defaultdict(dict))
    for (network, column, source), values_of_repeats in shares.items():
        by_network[network][column][source] = {metric: mean(values_of_repeats)}
    tested = {video["video_id"] for video in videos}
    result = {
        "protocol": protocol,
        "version": 1,
        "source": "a test",
        "settings": {"neighbours": 20},
        "reduced": {},
        "dataset": dataset,
        "splits": ["1"],
        "split": {"train": 8, "val": 0, "test": len(tested)},
        "architecture": "r3d_tiny",
        "checkpoint": "step-000000001.keras",
        "weights_sha256": "0" * 64,
        "seed": 0,
        "seeds": [0],
        "clips": 10,
        "views": "10x1",
        "counts": {"asked": len(tested) + 8, "decoded": len(tested) + 8, "failed": {}},
        "chance": {column: 0.25 for column in by_network["metrics"]},
        **by_network,
        "deviation": {},
        "repeats": [],
        **values,
    }
    results = run / "results"
    results.mkdir(exist_ok=True)
    name = f"{protocol}-{stem or dataset}"
    (results / f"{name}.json").write_text(json.dumps(result))
    with (results / f"{name}.videos.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(videos)
    return result


def write_metrics(run, epochs, pairs=(("P2", "spatial"), ("P5", "temporal")), knn=("appearance", "motion")):
    """Write `metrics.csv` with a row per epoch, and a kNN check in every second one."""
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "step": 4 * epoch, "seconds": 30.5, "videos_failed": 0, "loss": 10 / epoch}
        for level, task in pairs:
            figures = {"loss": 3 / epoch, "accuracy": 1 - 1 / epoch, "weight": 1.0, "invariance": 0.1}
            row |= {f"{level}_{task}_{name}": value for name, value in figures.items()}
        row |= {"clips_per_second": 200.0, "data_wait_share": 0.1, "learning_rate": 0.01 / epoch}
        row |= {f"knn_{column}": 0.5 if epoch % 2 == 0 else "" for column in knn}
        rows.append(row)
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def judged_as(records, column, share, network="metrics", neighbours=(), seed=0):
    """Rows of `.videos.csv` for records: about `share` of the predictions are correct, the others are random.

    If `neighbours` are given, ten random ones are listed for each video.
    """
    random = np.random.default_rng(seed)
    classes = sorted({record.labels[column] for record in records})
    rows = []
    for record in records:
        label = record.labels[column]
        predicted = label if random.random() < share else str(random.choice(classes))
        near = "|".join(random.choice(neighbours, 10).tolist()) if len(neighbours) else ""
        rows.append(
            judgements({record.video_id: True}, network, column)[0]
            | {"label": label, "predicted": predicted, "neighbours": near, "seed": seed}
        )
    return rows


def _grouped(videos):
    groups = defaultdict(list)
    for video in videos:
        groups[video["network"], video["column"], video["source"], video["split"], video["seed"]].append(video)
    return groups


# If it is not escaped, this class name closes an attribute, ends a script and runs another.
ODD_LABEL = "<b>&\"'</script><script>alert(1)</script>"


def two_label_run(folder):
    """A run on moving shapes with random weights and results of three protocols.

    One of them, fine-tuning, has two seeds and fewer epochs than published.
    """
    from hdc_keras.data.records import read_records
    from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes

    _pretrained_run(folder, {"shapes_per_pair": (1, 1)})
    write_metrics(folder, 12)
    records = read_records(ensure_moving_shapes(MovingShapes(1, 1)))
    test = [record for record in records if record.split == "test"]
    training = [record.video_id for record in records if record.split == "train"]
    for protocol, seeds in (("linear", [0]), ("retrieval", [0]), ("finetune-vcop", [0, 1])):
        videos = []
        for network, share in (("metrics", 0.7), ("random_weights", 0.3)):
            for column in ("appearance", "motion"):
                for seed in seeds:
                    near = training if protocol == "retrieval" else ()
                    videos += judged_as(test, column, share, network, near, seed)
        values = {}
        if protocol == "finetune-vcop":
            videos = [video | {"source": "fine-tuned"} for video in videos]
            spread = {column: {"fine-tuned": {"top1": 0.03}} for column in ("appearance", "motion")}
            less = {column: {"fine-tuned": {"top1": 0.02}} for column in ("appearance", "motion")}
            values = {
                "seeds": seeds,
                "reduced": {"epochs": [150, 3]},
                "deviation": {"metrics": spread, "random_weights": less},
            }
        write_result(folder, protocol, videos, views="2x1", **values)
    return folder


def one_label_run(folder):
    """A run on eight videos with one label column, one of whose class names needs escaping."""
    from hdc_keras.data.records import read_records
    from tests.conftest import write_class_folder

    videos = write_class_folder(folder / "videos")
    with (videos / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for label, name in (("across", ODD_LABEL), ("around", "around")):
            writer.writerows([f"{label}/{i}.mp4", name, "train" if i < 2 else "test"] for i in range(4))
    run = _pretrained_run(folder / "run", {"path": str(videos)})
    write_metrics(run, 2, knn=("label",))
    records = read_records(videos)
    near = [record.video_id for record in records if record.split == "train"]
    for protocol in ("linear", "retrieval"):
        judged = judged_as(records, "label", 0.5, neighbours=near if protocol == "retrieval" else ())
        write_result(run, protocol, judged, str(videos), "videos", views="2x1")
    return run


def unjudged_run(folder):
    """A run on eight videos without labels, which was never evaluated."""
    from tests.conftest import write_class_folder

    videos = write_class_folder(folder.parent / "videos")
    with (videos / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path"])
        writer.writerows([f"{label}/{i}.mp4"] for label in ("across", "around") for i in range(4))
    return _pretrained_run(folder, {"path": str(videos)})


def _pretrained_run(folder, data):
    from hdc_keras.runs.directory import RunDirectory
    from hdc_keras.training.models import build_model

    experiment = Experiment.model_validate(
        {
            "name": "moving-shapes <test>",
            "data": {"frames": 8, "decode_size": (40, 40), **data},
            "views": {"size": 32},
            "model": {"backbone": "r3d_tiny"},
            "train": {"epochs": 12},
            "evaluate": {"clips": 2},
        }
    )
    directory = RunDirectory(folder)
    directory.create(experiment)
    directory.checkpoints.save(build_model(experiment), 1, 1)
    return folder
