"""The figures of every protocol on fixed features, to 1e-6.

Each figure is computed by the protocol and by a slow, plain reference. If a figure changes on purpose, raise the
version of the protocol, and enter both here: results of different versions are not compared.
"""

from dataclasses import dataclass
from statistics import mean

import numpy as np
import pytest

from hdc_keras.config import EvaluateConfig
from hdc_keras.data.records import VideoRecord
from hdc_keras.features.video_features import VideoFeatures
from hdc_keras.probes.registry import PROBES, feature_sources, judge
from tests.probes import plain_reference

SETTINGS = EvaluateConfig()
LEVELS = ["P2", "P5"]
SEEDS = (3, 4)
GOLDEN = {
    "linear": (
        1,
        {
            "action: top1": 0.76818182,
            "action: top5": 0.99545455,
            "action: mean_class_accuracy": 0.74886459,
            "action: l2": 0.01,
            "camera: top1": 0.73636364,
            "camera: mean_class_accuracy": 0.65512821,
            "camera: l2": 0.001,
        },
    ),
    "linear-cvrl": (
        2,
        {
            "action: top1": 0.51818182,
            "action: top5": 0.975,
            "action: mean_class_accuracy": 0.46454109,
            "camera: top1": 0.475,
            "camera: mean_class_accuracy": 0.39046474,
        },
    ),
    "linear-severe": (
        2,
        {
            "action: top1": 0.40227273,
            "action: top5": 0.98409091,
            "action: mean_class_accuracy": 0.32320194,
            "camera: top1": 0.58636364,
            "camera: mean_class_accuracy": 0.33870192,
        },
    ),
    "knn": (
        1,
        {
            "action: top1": 0.68636364,
            "action: top5": 0.98636364,
            "action: mean_class_accuracy": 0.66143389,
            "camera: top1": 0.63636364,
            "camera: mean_class_accuracy": 0.49455128,
        },
    ),
    "retrieval": (
        1,
        {
            "action: R@1": 0.66363636,
            "action: R@5": 0.93636364,
            "action: R@10": 0.98181818,
            "action: R@20": 0.99090909,
            "action: R@50": 0.99545455,
            "action: mean_class_accuracy": 0.64439128,
            "camera: R@1": 0.53181818,
            "camera: R@5": 0.93636364,
            "camera: R@10": 0.97727273,
            "camera: R@20": 0.99545455,
            "camera: R@50": 1.0,
            "camera: mean_class_accuracy": 0.42732372,
        },
    ),
    "retrieval-vcop": (
        1,
        {
            "action: R@1": 0.39545455,
            "action: R@5": 0.76363636,
            "action: R@10": 0.88181818,
            "action: R@20": 0.95454545,
            "action: R@50": 1.0,
            "action: mean_class_accuracy": 0.34222868,
            "camera: R@1": 0.58181818,
            "camera: R@5": 0.87272727,
            "camera: R@10": 0.96818182,
            "camera: R@20": 0.97727273,
            "camera: R@50": 1.0,
            "camera: mean_class_accuracy": 0.45849359,
        },
    ),
    "lowlabel": (
        1,
        {
            "action: top1, 1 per class": 0.31,
            "action: mean_class_accuracy, 1 per class": 0.31051454,
            "action: top1, 5 per class": 0.62363636,
            "action: mean_class_accuracy, 5 per class": 0.61688615,
            "action: top1, 10 per class": 0.69727273,
            "action: mean_class_accuracy, 10 per class": 0.68989557,
            "action: top1, 20 per class": 0.74272727,
            "action: mean_class_accuracy, 20 per class": 0.73185995,
            "camera: top1, 1 per class": 0.36909091,
            "camera: mean_class_accuracy, 1 per class": 0.38391026,
            "camera: top1, 5 per class": 0.46272727,
            "camera: mean_class_accuracy, 5 per class": 0.45775641,
            "camera: top1, 10 per class": 0.50636364,
            "camera: mean_class_accuracy, 10 per class": 0.49599359,
            "camera: top1, 20 per class": 0.56272727,
            "camera: mean_class_accuracy, 20 per class": 0.55378205,
        },
    ),
}
GOLDEN["factors"] = GOLDEN["linear"]
REFERENCES = {
    "linear": plain_reference.linear,
    "linear-cvrl": plain_reference.linear_cvrl,
    "linear-severe": plain_reference.linear_severe,
    "knn": plain_reference.knn,
    "retrieval": plain_reference.retrieval,
    "retrieval-vcop": plain_reference.retrieval_vcop,
    "lowlabel": plain_reference.low_label,
    "factors": plain_reference.linear,
}
STEPS = {
    "linear": ("standardisation", "penalty", "choice of the penalty", "groups"),
    "linear-cvrl": ("unit length", "cosine", "warm-up", "momentum", "softmax of views", "dropped last batch"),
    "linear-severe": (
        "no normalisation",
        "drops",
        "initial weights",
        "adam",
        "softmax of views",
        "dropped last batch",
    ),
    "knn": ("standardisation", "unit length", "neighbours", "weighting", "temperature"),
    "retrieval": ("standardisation", "unit length"),
    "retrieval-vcop": ("no standardisation", "unit length"),
    "lowlabel": ("standardisation", "penalty", "drawing"),
}


@dataclass(frozen=True)
class Video:
    """A video as the reference sees it."""

    video_id: str
    labels: dict
    group: str
    split: str
    views: dict


def fixed_videos():
    """Videos of six actions and three cameras, of unequal numbers, in groups, with three views of each.

    The features encode the labels, but do not separate them. Like features after a ReLU they are not negative. Their
    channels have unequal means and scales, and the lengths of views differ.
    """
    random = np.random.RandomState(22)  # its numbers are the same in every version of numpy
    videos = []
    scales = {"P2": 10.0 ** random.uniform(-1, 1, 5), "P5": 10.0 ** random.uniform(-1, 0.5, 8)}
    centres = {name: random.normal(size=(6, len(scale))) for name, scale in scales.items()}
    for number in range(640):
        action = int(6 * random.uniform() ** 1.5)
        group = random.randint(12)
        camera = int(random.choice(3, p=(0.6, 0.3, 0.1)))
        split = "test" if group >= 8 else "val" if group == 7 else "train"
        views = {}
        for name, scale in scales.items():
            shift = 0.8 * np.sin(np.arange(len(scale)) * (group + 1)) + 0.7 * np.cos(np.arange(len(scale)) + camera)
            signal = centres[name][action] + shift + 1.7 * random.normal(size=(3, len(scale)))
            length = 2.0 ** random.uniform(-1, 1, (3, 1))
            views[name] = (np.maximum(signal + 3, 0) * scale * length).astype(np.float32)
        labels = {"action": f"action {action}", "camera": f"camera {camera}"}
        videos.append(Video(f"{number}", labels, f"{group}", split, views))
    return videos


VIDEOS = fixed_videos()


def features_of(videos):
    """The same for a protocol. Its means over views are float32."""
    records = [VideoRecord(v.video_id, v.video_id, v.labels, v.split, v.group) for v in videos]
    views = {name: np.stack([video.views[name] for video in videos]) for name in LEVELS}
    return VideoFeatures(records, {name: view.mean(axis=1) for name, view in views.items()}, len(videos), {}, views)


def figures_of(protocol):
    """Figures of a protocol by label column and metric, averaged over seeds."""
    sources = {"features": feature_sources(protocol, LEVELS, [])["features"]}
    found = {}
    for answer in judge(protocol, features_of(VIDEOS), sources, SETTINGS, SEEDS):
        for name, value in answer.judgement.metrics.items():
            found.setdefault(f"{answer.column}: {name}", []).append(value)
    return {name: mean(values) for name, values in found.items()}


def figures_of_reference(protocol, columns=("action", "camera"), without=()):
    names = feature_sources(protocol, LEVELS, [])["features"]
    train, test = ([video for video in VIDEOS if video.split == split] for split in ("train", "test"))
    probe = PROBES[protocol]
    seeds = range(3, 3 + max(len(SEEDS), probe.least_seeds)) if probe.is_random else SEEDS[:1]
    found = {}
    for column in columns:
        for seed in seeds:
            for name, value in REFERENCES[protocol](train, test, column, names, seed, without).items():
                found.setdefault(f"{column}: {name}", []).append(value)
    return {name: mean(values) for name, values in found.items()}


@pytest.mark.parametrize("protocol", PROBES)
def test_figures_equal_the_slow_reference_and_the_stored_figures_of_this_version(protocol):
    version, golden = GOLDEN[protocol]

    figures = figures_of(protocol)

    assert figures == pytest.approx(figures_of_reference(protocol), abs=1e-6)
    assert figures == pytest.approx(golden, abs=1e-6), "raise the version of the protocol, if this is meant"
    assert version == PROBES[protocol].version, "enter the figures of the new version"


@pytest.mark.parametrize("protocol, step", [(name, step) for name, steps in STEPS.items() for step in steps])
def test_each_step_of_a_protocol_changes_its_figures(protocol, step):
    changed = figures_of_reference(protocol, ("action",), without=(step,))

    assert changed != pytest.approx({name: GOLDEN[protocol][1][name] for name in changed}, abs=1e-6)


def test_the_features_are_not_separable():
    shares = [value for _, golden in GOLDEN.values() for name, value in golden.items() if "l2" not in name]

    assert max(shares) <= 1 and sum(share == 1 for share in shares) < len(shares) / 4
    assert all(golden["action: top1"] < 0.95 for _, golden in GOLDEN.values() if "action: top1" in golden)
