from dataclasses import replace

import keras
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from hdc_keras import HDC, R3D
from hdc_keras.config import Experiment
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord, read_records, with_splits
from hdc_keras.errors import DataError
from hdc_keras.evaluation.factors_chart import draw_factors
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.features.store import FeatureStore
from hdc_keras.features.video_features import VideoFeatures, joined
from hdc_keras.probes.linear import linear_probe
from hdc_keras.probes.low_label import draw_per_class
from hdc_keras.probes.protocol import judged_by_scores
from hdc_keras.probes.registry import PROBES, chance, feature_sources, judge
from hdc_keras.probes.sgd import adam_update, momentum_update
from hdc_keras.training.optimizers import WarmupCosine

EXPERIMENT = Experiment.model_validate(
    {
        "data": {"frames": 4, "stride": 1, "decode_size": (20, 20), "max_failed_share": 0.5},
        "views": {"size": 16},
        "evaluate": {"clips": 3, "batch_size": 8, "knn_neighbours": 5},
    }
)


def encoder():
    model = HDC(R3D([4, 4, 6, 8], [1, 1, 1, 1]), EXPERIMENT.views, {"embedding_dim": 8})
    return ClipEncoder(model, EXPERIMENT.data.decode_size)


def test_no_video_is_dropped_and_broken_ones_are_named(shapes_folder, tmp_path):
    good = read_records(shapes_folder)[:34]
    broken = []
    for number in range(3):
        (tmp_path / f"broken{number}.mp4").write_text("no video")
        broken.append(VideoRecord(str(tmp_path / f"broken{number}.mp4"), f"broken{number}", {"label": "x"}, "train"))
    records = [*good[:10], broken[0], *good[10:30], *broken[1:], *good[30:]]
    told = []

    features = extract_features(
        encoder(), records, EXPERIMENT, FrameStore((20, 20), 0.1), lambda done, total: told.append((done, total))
    )

    assert features.asked == 37 and len(features.records) == 34
    assert [record.video_id for record in features.records] == [record.video_id for record in good]
    assert sorted(features.failed) == [record.path for record in broken]
    assert all(array.shape[0] == 34 and np.isfinite(array).all() for array in features.arrays.values())
    assert told[-1] == (37, 37) and len(told) == 5


def test_a_videos_features_are_the_mean_over_its_clips_and_depend_on_no_other_video(shapes_folder):
    records, network, store = read_records(shapes_folder)[:10], encoder(), FrameStore((20, 20), 0.1)

    together = extract_features(network, records, EXPERIMENT, store)
    alone = extract_features(network, records[7:8], EXPERIMENT, store)

    for name in ("P2", "P5", "P3_spatial", "embedding"):
        np.testing.assert_allclose(together.arrays[name][7:8], alone.arrays[name], atol=1e-5)


def metrics_of(*arguments, **keywords):
    """What `judge` answers, by label column and source."""
    found = {}
    for answer in judge(*arguments, **keywords):
        found.setdefault(answer.column, {})[answer.source] = answer.judgement.metrics
    return found


def made_features(seed=0, per_class=12, columns=("shape", "half")):
    """Features in which `P5` tells the shape, and `P2` tells nothing; no feature tells the half."""
    rng = np.random.default_rng(seed)
    records, shape = [], []
    for number in range(3 * per_class):
        split = "test" if number % 3 == 0 else "train"
        labels = {"shape": "abc"[number // per_class], "half": "xy"[number % 2]}
        labels = {column: labels[column] for column in columns}
        records.append(VideoRecord(f"{number}", f"{number}", labels, split))
        shape.append(np.eye(3)[number // per_class])
    arrays = {
        "P5": np.array(shape) + 0.05 * rng.normal(size=(3 * per_class, 3)),
        "P2": rng.normal(size=(3 * per_class, 4)),
    }
    views = {name: np.stack([array - 0.01, array + 0.01], axis=1) for name, array in arrays.items()}
    return VideoFeatures(records, arrays, len(records), {}, views)


@pytest.mark.parametrize(
    ("protocol", "metric"),
    [
        ("linear", "top1"),
        ("linear-cvrl", "top1"),
        ("linear-severe", "top1"),
        ("knn", "top1"),
        ("retrieval", "R@1"),
        ("lowlabel", "top1, 5 per class"),
    ],
)
def test_protocols_tell_features_that_know_from_features_that_do_not(protocol, metric):
    # Ten epochs of SEVERE's are ten steps on a few videos, in which nothing is learned.
    features = made_features(per_class=300 if protocol == "linear-severe" else 12)
    results = metrics_of(protocol, features, {"knowing": ["P5"], "noise": ["P2"]}, EXPERIMENT.evaluate)

    assert results["shape"]["knowing"][metric] == 1.0
    assert results["shape"]["noise"][metric] < 0.8


def test_every_protocol_is_judged_by_name():
    for protocol in PROBES:
        assert metrics_of(protocol, made_features(), {"P5": ["P5"]}, EXPERIMENT.evaluate)["shape"]["P5"]


def test_sources_are_all_levels_each_level_and_each_task():
    pairs = [("P2", "spatial"), ("P2", "temporal"), ("P5", "temporal")]
    sources = {
        "features": ["P2", "P5"],
        "P2": ["P2"],
        "P5": ["P5"],
        "spatial embeddings": ["P2_spatial"],
        "temporal embeddings": ["P2_temporal", "P5_temporal"],
        "all embeddings": ["P2_spatial", "P2_temporal", "P5_temporal"],
    }
    assert feature_sources("linear", ["P2", "P5"], pairs) == sources
    assert feature_sources("factors", ["P2", "P5"], pairs) == sources | {
        "P2 spatial embedding": ["P2_spatial"],
        "P2 temporal embedding": ["P2_temporal"],
        "P5 temporal embedding": ["P5_temporal"],
    }


def test_factors_say_which_label_can_be_read_and_are_drawn():
    results = metrics_of("factors", made_features(), {"knowing": ["P5"], "noise": ["P2"]}, EXPERIMENT.evaluate)

    assert results["shape"]["knowing"]["top1"] == 1.0
    assert max(results["half"][source]["top1"] for source in ("knowing", "noise")) < 0.9
    result = {"metrics": results, "random_weights": results, "chance": {"shape": 1 / 3, "half": 0.5}, "dataset": "made"}
    assert draw_factors(result).startswith(b"\x89PNG")


def test_factors_need_two_label_columns():
    with pytest.raises(DataError, match="the videos have only `shape`"):
        judge("factors", made_features(columns=("shape",)), {"P5": ["P5"]}, EXPERIMENT.evaluate)


def test_standardising_uses_the_training_videos_alone():
    features = made_features()
    train, test = features.of_split("train"), features.of_split("test")

    left, right = joined(train, test, ["P2", "P5"])

    assert left.shape == (24, 7) and right.shape == (12, 7)
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(left.std(axis=0), 1, atol=1e-3)
    mean, deviation = train.arrays["P2"].mean(axis=0), train.arrays["P2"].std(axis=0)
    np.testing.assert_allclose(right[:, :4], (test.arrays["P2"] - mean) / deviation, atol=1e-4)


def test_chance_is_the_most_frequent_class():
    assert chance(made_features(), "shape") == pytest.approx(1 / 3)


def test_unlabelled_videos_cannot_be_judged():
    features = made_features()
    unlabelled = VideoFeatures(
        [VideoRecord(r.path, r.video_id, {}, r.split) for r in features.records], features.arrays, 36, {}
    )

    with pytest.raises(DataError, match="no labels"):
        judge("knn", unlabelled, {"P5": ["P5"]}, EXPERIMENT.evaluate)


def test_one_side_without_videos_cannot_be_judged(shapes_folder):
    records = with_splits([VideoRecord("a", "a"), VideoRecord("b", "b")], 0.5, 0)
    features = VideoFeatures(records, {"P5": np.zeros((2, 3))}, 2, {})

    with pytest.raises(DataError, match="2 training and 0 test videos"):
        judge("knn", features, {"P5": ["P5"]}, EXPERIMENT.evaluate)


def test_the_penalty_of_the_linear_probe_is_chosen_without_the_test_videos():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 40)).astype("float32")
    labels = ["a" if row[0] + row[1] > 0 else "b" for row in features]

    def probe(test):
        return linear_probe(features[:40], labels[:40], test, [str(i) for i in range(40)], (1e-6, 1e-2, 1e2))

    scores, classes, penalty = probe(features[40:])
    again, _, same = probe(-features[40:])

    assert penalty == same and classes == ["a", "b"]
    predicted = np.array(classes)[scores.argmax(axis=1)]
    assert (predicted == np.array(labels[40:])).mean() > 0.6
    assert (again.argmax(axis=1) != scores.argmax(axis=1)).any()


def test_top1_and_top5_equal_scikit_learns():
    rng = np.random.default_rng(1)
    scores, classes = rng.normal(size=(50, 8)), list("abcdefgh")
    labels = rng.choice(classes, 50)

    judgement = judged_by_scores(scores, classes, labels)

    for name, k in (("top1", 1), ("top5", 5)):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=classes)
        assert judgement.metrics[name] == pytest.approx(expected)
    assert judgement.metrics["top1"] == accuracy_score(labels, judgement.predicted)


def test_top1_by_hand_with_ties_a_class_never_learned_and_few_classes():
    scores = np.array([[1.0, 1.0], [0.0, 2.0], [3.0, 0.0]])

    judgement = judged_by_scores(scores, ["a", "b"], ["b", "b", "never learned"])

    assert judgement.predicted == ["a", "b", "a"] and judgement.metrics == {"top1": pytest.approx(1 / 3)}


def test_the_updates_of_published_probes_are_those_of_keras():
    rng = np.random.default_rng(2)
    gradients = [[rng.normal(size=(4, 3)).astype("float32"), rng.normal(size=3).astype("float32")] for _ in range(5)]
    pairs = [
        (
            momentum_update(lambda step: 0.25 * (1 + np.cos(np.pi * step / 5)), 0.9),
            keras.optimizers.SGD(WarmupCosine(0.5, 0, 5), momentum=0.9),
        ),
        (adam_update(lambda step: 0.01), keras.optimizers.Adam(0.01, epsilon=1e-8)),
    ]
    for update, optimizer in pairs:
        ours = [np.ones((4, 3)), np.ones(3)]
        variables = [keras.Variable(value.astype("float32")) for value in ours]
        for step, both in enumerate(gradients):
            ours = [value - change for value, change in zip(ours, update(step, both), strict=True)]
            optimizer.apply(both, variables)
        for value, variable in zip(ours, variables, strict=True):
            np.testing.assert_allclose(value, keras.ops.convert_to_numpy(variable), atol=1e-5)


def test_few_labels_are_so_many_of_each_class_and_more_hold_fewer():
    labels = list("aaaaaabbbbc")

    one, three = draw_per_class(labels, 1, seed=3), draw_per_class(labels, 3, seed=3)

    assert sorted(labels[row] for row in one) == list("abc")
    assert sorted(labels[row] for row in three) == list("aaabbbc")
    assert set(one) < set(three) and draw_per_class(labels, 3, seed=4) != three


def test_low_label_is_repeated_and_leaves_out_what_all_videos_would_serve():
    answers = judge("lowlabel", made_features(columns=("shape",)), {"P5": ["P5"]}, EXPERIMENT.evaluate, seeds=(7,))

    # 8 training videos a class: 10 and 20 a class, and 334, are all of them.
    assert [set(answer.judgement.metrics) for answer in answers] == [{"top1, 1 per class", "top1, 5 per class"}] * 5
    assert [answer.seed for answer in answers] == [7, 8, 9, 10, 11]


def test_retrieval_names_the_nearest_training_videos():
    features = made_features(columns=("shape",))

    (answer,) = judge("retrieval", features, {"P5": ["P5"]}, EXPERIMENT.evaluate)

    by_id = {record.video_id: record for record in features.records}
    for label, near in zip(answer.judgement.predicted, answer.judgement.neighbours, strict=True):
        assert len(near) == 10 and by_id[near[0]].labels["shape"] == label and by_id[near[0]].split == "train"


def test_one_class_cannot_be_judged():
    features = made_features(columns=("shape",))
    same = [replace(record, labels={"shape": "a"}) for record in features.records]

    with pytest.raises(DataError, match="the same `shape`"):
        judge("knn", VideoFeatures(same, features.arrays, 36, {}), {"P5": ["P5"]}, EXPERIMENT.evaluate)


def test_features_are_kept_and_made_anew_for_other_weights_clips_or_videos(shapes_folder, tmp_path, monkeypatch):
    records, network, store = read_records(shapes_folder)[:6], encoder(), FrameStore((20, 20), 0.1)
    records.append(broken_video(tmp_path))

    def extract(used=network, chosen=records, experiment=EXPERIMENT):
        return extract_features(
            used, chosen, experiment, store, cache=FeatureStore(tmp_path / "features"), keep_views=True
        )

    first = extract()
    with monkeypatch.context() as patch:
        patch.setattr(network, "predict_on_batch", None)  # nothing is encoded again
        again = extract()
        backwards = extract_features(
            network, records[::-1], EXPERIMENT, store, cache=FeatureStore(tmp_path / "features")
        )

    assert [record.video_id for record in backwards.records] == [record.video_id for record in first.records][::-1]
    np.testing.assert_array_equal(backwards.arrays["P5"], first.arrays["P5"][::-1])
    assert again.failed == first.failed and list(again.failed) == [records[-1].path]
    assert [record.video_id for record in again.records] == [record.video_id for record in first.records]
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
        np.testing.assert_allclose(again.views[name].mean(axis=1), array, atol=1e-6)
    other_clips = EXPERIMENT.model_copy(update={"evaluate": EXPERIMENT.evaluate.model_copy(update={"clips": 2})})
    for number, changed in enumerate([{"used": encoder()}, {"chosen": records[1:]}, {"experiment": other_clips}], 2):
        extract(**changed)
        assert len(list((tmp_path / "features").iterdir())) == number


def test_a_kept_file_that_is_damaged_is_made_anew(shapes_folder, tmp_path):
    records, network, store = read_records(shapes_folder)[:3], encoder(), FrameStore((20, 20), 0.1)
    first = extract_features(network, records, EXPERIMENT, store, cache=FeatureStore(tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])

    again = extract_features(network, records, EXPERIMENT, store, cache=FeatureStore(tmp_path))

    np.testing.assert_array_equal(again.arrays["P5"], first.arrays["P5"])


def broken_video(folder):
    (folder / "broken.mp4").write_text("no video")
    return VideoRecord(str(folder / "broken.mp4"), "broken", {"label": "x"}, "train")


def test_three_crops_are_the_views_left_middle_and_right(shapes_folder):
    records, store = read_records(shapes_folder)[:2], FrameStore((20, 32), 0.1)
    data = EXPERIMENT.data.model_copy(update={"decode_size": (20, 32)})
    experiment = EXPERIMENT.model_copy(update={"data": data})
    model = HDC(R3D([4, 4, 6, 8], [1, 1, 1, 1]), EXPERIMENT.views, {"embedding_dim": 8})

    three = extract_features(ClipEncoder(model, (20, 32), crops=3), records, experiment, store, keep_views=True)
    one = extract_features(ClipEncoder(model, (20, 32)), records, experiment, store, keep_views=True)

    assert three.views["P5"].shape == (2, 9, 8) and one.views["P5"].shape == (2, 3, 8)
    # Views of a clip follow each other: the middle crop of each clip is what a single crop is.
    np.testing.assert_allclose(three.views["P5"][:, 1::3], one.views["P5"], atol=1e-5)
    assert np.abs(three.views["P5"][:, 0::3] - three.views["P5"][:, 2::3]).max() > 1e-4
