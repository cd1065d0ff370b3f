"""A classifier of three classes with random weights, as `hdc-keras finetune` writes it."""

import keras

from hdc_keras import Experiment
from hdc_keras.backbones import R3DTiny
from hdc_keras.classification.directory import ClassifierDirectory
from hdc_keras.finetuning.classifier import VideoClassifier

EXPERIMENT = Experiment.model_validate(
    {
        "name": "small",
        "data": {"frames": 4, "stride": 2, "decode_size": [20, 24], "max_failed_share": 0.5},
        "views": {"size": 16},
        "model": {"backbone": "r3d_tiny"},
        "evaluate": {"clips": 2, "batch_size": 4},
    }
)
COUNTS = {"videos": 4, "groups": 4, "by_class": {"a": 2, "b": 1, "c": 1}}
FACTS = {
    "format": 1,
    "name": "small",
    "classes": ["a", "b", "c"],
    "column": "label",
    "chosen": "whole",
    "note": "",
    "candidates": {"frozen": {"loss": 1.0, "top1": 0.5}, "whole": {"loss": 0.8, "top1": 0.75}},
    "levels": ["P4", "P5"],
    "pretrained": True,
    "run": "runs/mine",
    "checkpoint": "step-000000100.keras",
    "weights_sha256": "0" * 64,
    "dataset": "videos",
    "videos": {"training": COUNTS, "validation": COUNTS, "test": COUNTS},
    "test": {
        "videos": 4,
        "groups": 4,
        "top1": 0.75,
        "interval": [0.3, 0.95],
        "mean_class_accuracy": 0.8,
        "chance": 0.5,
        "clips": 2,
        "crops": 1,
        "confusions": {"a": {"a": 1, "b": 1}, "b": {"b": 1}, "c": {"c": 1}},
    },
    "untrained_classes": {},
    "seen_in_pretraining": {"test_videos": 4, "of": 4},
    "failed": {},
    "request_sha256": "1" * 64,
}
ANSWERS = [
    {"video_id": f"{number}.mp4", "file": "", "group": "", "label": label, "predicted": predicted, "score": "0.5000"}
    for number, (label, predicted) in enumerate(["aa", "ab", "bb", "cc"])
]


def small_classifier(dtype="float32"):
    keras.utils.set_random_seed(0)
    return VideoClassifier(
        R3DTiny(dtype=dtype), ["a", "b", "c"], {"size": 16}, levels=("P4", "P5"), dtype=dtype, name="classifier"
    )


def write_classifier(folder):
    ClassifierDirectory(folder).write(small_classifier(), EXPERIMENT, FACTS, ANSWERS, None)
    return folder
