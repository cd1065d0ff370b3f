import numpy as np
import pytest

from hdc_keras import HDC, R3D
from hdc_keras.config import Experiment
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord, read_records, with_splits
from hdc_keras.encoder import ClipEncoder
from hdc_keras.errors import DataError
from hdc_keras.evaluation.factors import draw_factors
from hdc_keras.evaluation.features import VideoFeatures, extract_features, joined
from hdc_keras.evaluation.linear_probe import linear_probe
from hdc_keras.evaluation.protocols import PROTOCOLS, chance, feature_sources, judge

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
    return VideoFeatures(records, arrays, len(records), {})


@pytest.mark.parametrize(("protocol", "metric"), [("linear", "top1"), ("knn", "top1"), ("retrieval", "R@1")])
def test_protocols_tell_features_that_know_from_features_that_do_not(protocol, metric):
    results = judge(protocol, made_features(), {"knowing": ["P5"], "noise": ["P2"]}, EXPERIMENT)

    assert results["shape"]["knowing"][metric] == 1.0
    assert results["shape"]["noise"][metric] < 0.8


def test_every_protocol_is_judged_by_name():
    for protocol in PROTOCOLS:
        assert judge(protocol, made_features(), {"P5": ["P5"]}, EXPERIMENT)["shape"]["P5"]


def test_sources_are_all_levels_each_level_and_each_task():
    pairs = [("P2", "spatial"), ("P2", "temporal"), ("P5", "temporal")]
    sources = {
        "features": ["P2", "P5"],
        "P2": ["P2"],
        "P5": ["P5"],
        "spatial embeddings": ["P2_spatial"],
        "temporal embeddings": ["P2_temporal", "P5_temporal"],
    }
    assert feature_sources("linear", ["P2", "P5"], pairs) == sources
    assert feature_sources("factors", ["P2", "P5"], pairs) == sources | {
        "all embeddings": ["P2_spatial", "P2_temporal", "P5_temporal"],
        "P2 spatial embedding": ["P2_spatial"],
        "P2 temporal embedding": ["P2_temporal"],
        "P5 temporal embedding": ["P5_temporal"],
    }


def test_factors_say_which_label_can_be_read_and_are_drawn():
    results = judge("factors", made_features(), {"knowing": ["P5"], "noise": ["P2"]}, EXPERIMENT)

    assert results["shape"]["knowing"]["top1"] == 1.0
    assert max(results["half"][source]["top1"] for source in ("knowing", "noise")) < 0.9
    result = {"metrics": results, "random_weights": results, "chance": {"shape": 1 / 3, "half": 0.5}, "dataset": "made"}
    assert draw_factors(result).startswith(b"\x89PNG")


def test_factors_need_two_label_columns():
    with pytest.raises(DataError, match="the videos have only `shape`"):
        judge("factors", made_features(columns=("shape",)), {"P5": ["P5"]}, EXPERIMENT)


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
        judge("knn", unlabelled, {"P5": ["P5"]}, EXPERIMENT)


def test_one_side_without_videos_cannot_be_judged(shapes_folder):
    records = with_splits([VideoRecord("a", "a"), VideoRecord("b", "b")], 0.5, 0)
    features = VideoFeatures(records, {"P5": np.zeros((2, 3))}, 2, {})

    with pytest.raises(DataError, match="2 training and 0 test videos"):
        judge("knn", features, {"P5": ["P5"]}, EXPERIMENT)


def test_the_penalty_of_the_linear_probe_is_chosen_without_the_test_videos():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 40)).astype("float32")
    labels = ["a" if row[0] + row[1] > 0 else "b" for row in features]

    def probe(test):
        return linear_probe(features[:40], labels[:40], test, [str(i) for i in range(40)], (1e-6, 1e-2, 1e2))

    predicted, penalty = probe(features[40:])
    again, same = probe(-features[40:])

    assert penalty == same
    assert (predicted == np.array(labels[40:])).mean() > 0.6 and (again != predicted).any()
