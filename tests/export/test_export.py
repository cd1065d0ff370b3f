"""Exports give the outputs of Keras for any shape of video, without hdc_keras, and come with a model card."""

import ast
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras import HDC
from hdc_keras.backbones import build_backbone
from hdc_keras.classification.network import ClassNetwork
from hdc_keras.config import preset
from hdc_keras.errors import ConfigError, ExportError, RunError
from hdc_keras.export import FORMATS, export
from hdc_keras.export import job as export_job
from hdc_keras.export.job import greatest_difference
from hdc_keras.export.networks import in_float32, network_of
from hdc_keras.export.portable import FlatMaxPooling, resize_by_matrices
from hdc_keras.features.encoder import ClipEncoder, resize_frames
from tests.classification.small_classifier import EXPERIMENT as CLASSIFIER_EXPERIMENT
from tests.classification.small_classifier import FACTS as CLASSIFIER_FACTS
from tests.classification.small_classifier import small_classifier
from tests.export.small_exports import small_experiment, small_export, small_model

VIDEO_FORMATS = ("saved_model", "onnx", "litert")
OUTPUTS = ["P2", "P2_spatial", "P3", "P3_spatial", "P4", "P4_temporal", "P5", "P5_temporal", "embedding"]
# Different from the shapes that `export` compares.
SHAPES = ((3, 8, 40, 48, 3), (1, 17, 33, 90, 3))


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def exports(once):
    """The export of `small_model()` by format, made when it is first needed."""

    class Exports(dict):
        def __missing__(self, format):
            self[format] = small_export(once, format)
            return self[format]

    return Exports()


def facts_of(exported):
    if exported.path.is_dir():
        return json.loads((exported.path / "assets.extra" / "hdc_keras.json").read_text())
    return json.loads(exported.path.with_name(f"{exported.path.name}.json").read_text())


def script_in(card):
    return re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL).group(1)


# Runs the script unchanged, and then on the test's videos.
WITHOUT_HDC_KERAS = """
import re, sys
sys.modules["hdc_keras"] = None  # Importing it fails.
import numpy as np
script = open("script.py").read()
exec(script, {})
for number in range(2):
    space = {}
    exec(re.sub(r"(?m)^video = .*$", f"video = np.load('video{number}.npy')", script), space)
    np.savez(f"out{number}.npz", **{name: np.asarray(value) for name, value in space["outputs"].items()})
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", VIDEO_FORMATS)
def test_the_cards_script_encodes_any_video_without_hdc_keras(exports, model, format, tmp_path):
    exported, rng = exports[format], np.random.default_rng(1)
    (tmp_path / exported.path.name).symlink_to(exported.path)
    (tmp_path / "script.py").write_text(script_in(exported.card))
    videos = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in SHAPES]
    for number, video in enumerate(videos):
        np.save(tmp_path / f"video{number}.npy", video)

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HDC_KERAS], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr[-3000:]
    encoder = ClipEncoder(model, (40, 48))
    for number, video in enumerate(videos):
        expected, found = encoder(video), np.load(tmp_path / f"out{number}.npz")
        assert sorted(found) == OUTPUTS
        for name in OUTPUTS:
            np.testing.assert_allclose(
                found[name], ops.convert_to_numpy(expected[name]), atol=1e-4, rtol=1e-4, err_msg=name
            )


@pytest.mark.parametrize("format", VIDEO_FORMATS)
def test_any_shape_of_video_gives_the_outputs_of_keras(exports, model, format):
    encode, rng = FORMATS[format].open(exports[format].path), np.random.default_rng(1)

    for shape in SHAPES:
        video = rng.integers(0, 256, shape, dtype=np.uint8)
        expected, found = ClipEncoder(model, (40, 48))(video), encode(video)
        assert sorted(found) == OUTPUTS
        for name in OUTPUTS:
            np.testing.assert_allclose(found[name], ops.convert_to_numpy(expected[name]), atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_the_cards_script_loads_every_kind_of_backbone_in_plain_keras(exports, tmp_path):
    scripts = [script_in(exports["keras"].card).replace("backbone.keras", str(exports["keras"].path))]
    for name in ("r2plus1d_tiny", "c3d_tiny", "s3d_tiny"):
        exported = export(small_model(name), small_experiment(name), "keras", tmp_path / f"{name}.keras")
        scripts.append(script_in(exported.card))

    without = "import sys\nsys.modules['hdc_keras'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", without + "\n".join(scripts)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert "'P5': (1, 2, 7, 7, 96)" in done.stdout and done.stdout.count("'P2'") == 4


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_reports_its_size_and_its_difference_from_keras(exports, model, format):
    exported = exports[format]

    assert exported.difference < 1e-5  # A tenth of the tolerance.
    assert exported.size > 4 * model.backbone.count_params()
    if exported.path.is_file():
        assert exported.size == exported.path.stat().st_size
    else:  # Every weight is saved only once.
        assert exported.size < 6 * model.count_params()


def test_outputs_and_variable_axes_are_named_in_every_runtime(exports):
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    session = onnxruntime.InferenceSession(exports["onnx"].path, providers=["CPUExecutionProvider"])
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("video", "tensor(uint8)", ["batch", "time", "height", "width", 3])
    ]
    assert {value.name: value.shape for value in session.get_outputs()}["P5_temporal"] == ["batch", 16]
    assert sorted(value.name for value in session.get_outputs()) == OUTPUTS
    signatures = Interpreter(str(exports["litert"].path)).get_signature_list()
    assert {name: (found["inputs"], sorted(found["outputs"])) for name, found in signatures.items()} == {
        "serve": (["video"], OUTPUTS)
    }


@pytest.mark.parametrize(("backbone", "least"), [("r3d_tiny", 1), ("c3d_tiny", 8)])
def test_a_saved_model_refuses_clips_that_are_too_short(backbone, least, tmp_path):
    import tensorflow as tf

    exported = export(small_model(backbone), small_experiment(backbone), "saved_model", tmp_path / "model")
    encode = FORMATS["saved_model"].open(exported.path)

    outputs = encode(np.zeros((1, least, 40, 48, 3), np.uint8))
    assert all(np.isfinite(value).all() for value in outputs.values())
    for shape in ((1, least - 1, 40, 48, 3), (1, least, 0, 48, 3)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"expected video .* of {least} or more frames"):
            encode(np.zeros(shape, np.uint8))
    assert f"Other lengths of {least} or more frames work; a shorter clip is refused." in exported.card.read_text()


@pytest.mark.parametrize("format", FORMATS)
def test_the_card_names_the_shortest_clip(exports, format):
    ends = "is refused" if format == "saved_model" else "gives empty or non-finite outputs, so check the length first"

    assert f"Other lengths of 1 or more frames work; a shorter clip {ends}." in exports[format].card.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "litert"])
@pytest.mark.parametrize("backbone", ["r2plus1d_tiny", "c3d_tiny", "s3d_tiny", "x3d_tiny", "videomae_vit_tiny"])
def test_every_kind_of_backbone_is_converted(backbone, format, tmp_path):
    exported = export(small_model(backbone), small_experiment(backbone), format, tmp_path / FORMATS[format].file_name)

    assert exported.difference < 1e-4 and exported.path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("format", VIDEO_FORMATS)
def test_an_exported_transformer_refuses_clips_that_are_not_whole_tubelets(format, tmp_path):
    model, experiment = small_model("videomae_vit_tiny"), small_experiment("videomae_vit_tiny")

    exported = export(model, experiment, format, tmp_path / FORMATS[format].file_name)

    encode = FORMATS[format].open(exported.path)
    assert np.isfinite(encode(np.zeros((1, 6, 40, 48, 3), np.uint8))["P5"]).all()
    with pytest.raises(Exception, match=r"(?i)multiple of 2|reshape"):  # each runtime has errors of its own
        encode(np.zeros((1, 7, 40, 48, 3), np.uint8))
    assert "Other multiples of 2 frames work; any other length is refused." in exported.card.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["x3d_tiny", "videomae_vit_tiny"])
def test_the_cards_script_loads_a_backbone_with_layers_of_this_package(backbone, tmp_path):
    exported = export(small_model(backbone), small_experiment(backbone), "keras", tmp_path / "backbone.keras")

    script = script_in(exported.card)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr[-3000:]
    assert "'P5': (1, " in done.stdout
    assert "It contains layers of hdc-keras, which must be installed to load it." in exported.card.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_crops_round_what_moves_and_the_steady_camera_are_exported(format, tmp_path):
    views = {"size": 32, "focus": 0.7, "steady": True}
    experiment = small_experiment("r3d_small_motion")
    experiment = experiment.model_copy(update={"views": experiment.views.model_copy(update=views)})
    model = HDC(build_backbone("r3d_small_motion"), experiment.views, experiment.contrast)

    exported = export(model, experiment, format, tmp_path / FORMATS[format].file_name)

    assert exported.difference < 1e-4
    said = (
        "took the camera's motion out, cropped them to a square"
        if format == "keras"
        else "takes the camera's motion out, crops a square"
    )
    assert said in exported.card.read_text()


def test_a_network_trained_in_bfloat16_is_exported_in_float32(tmp_path):
    model = small_model(dtype="mixed_bfloat16")

    exported = export(model, small_experiment(), "onnx", tmp_path / "model.onnx")

    assert exported.difference < 1e-5
    copy = in_float32(model)
    assert copy.backbone.get_config()["dtype"]["config"]["name"] == "float32" and in_float32(copy) is copy
    for ours, theirs in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_ablation_is_exported_with_its_levels_and_tasks(tmp_path):
    contrast = preset("hdc-top-level")["contrast"] | {"embedding_dim": 16}
    model = HDC(build_backbone("r3d_tiny"), {"size": 32}, contrast)

    exported = export(model, small_experiment(), "saved_model", tmp_path / "model")

    assert list(facts_of(exported)["outputs"]) == ["P5", "P5_spatial", "P5_temporal", "embedding"]


RESULT = {
    "protocol": "linear",
    "dataset": "/home/someone/moves",
    "split": {"train": 30, "test": 12},
    "chance": {"motion": 0.25},
    "metrics": {"motion": {"features": {"top1": 0.875, "l2": 0.001}}},
    "random_weights": {"motion": {"features": {"top1": 0.5, "l2": 0.1}}},
    "deviation": {"metrics": {"motion": {"features": {"top1": 0.0125}}}},
    "weights_sha256": "another",
}


def test_the_card_has_origin_results_licence_and_check(model, tmp_path):
    checkpoint = tmp_path / "step-000000012.keras"
    checkpoint.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    path = tmp_path / "export" / "backbone.keras"

    exported = export(
        model,
        small_experiment(),
        "keras",
        path,
        checkpoint=checkpoint,
        results=[RESULT, RESULT | {"protocol": "knn", "weights_sha256": sha256}],
        licence="CC-BY-4.0",
    )

    card, facts = exported.card.read_text(), facts_of(exported)
    assert exported.card == tmp_path / "export" / "backbone.keras.md"
    for expected in (
        "r3d_tiny",
        "moving-shapes",
        "8 frames, stride 2, 32 x 32 pixels",
        sha256,
        "| linear | moves | motion | features | top1 0.875 ± 0.013 | top1 0.500 | 0.250 | 12 | no |",
        "| knn | moves |",
        "## Licence\n\nCC-BY-4.0",
        f"keras {keras.__version__}",
        "  decode_size:\n",
        f"{exported.size:,} bytes",
    ):
        assert expected in card, expected
    assert facts["weights_sha256"] == sha256 and facts["config"]["data"]["decode_size"] == [40, 48]
    assert facts["check"] == {
        "tolerance": 1e-4,
        "greatest_difference": exported.difference,
        "inputs": [[2, 8, 32, 32, 3], [1, 13, 48, 24, 3]],
    }


def test_a_card_without_results_or_licence_says_who_must_decide(exports):
    exported = exports["saved_model"]
    card = exported.card.read_text()

    assert exported.card == exported.path / "MODEL_CARD.md"
    assert "## Results" not in card and "whoever trained them must decide" in card
    assert "`P5_temporal` | (batch, 16) | temporal embedding of stage P5" in card
    assert facts_of(exported)["resized_to"] == [40, 48]


@pytest.mark.parametrize("format", FORMATS)
def test_a_network_with_non_finite_outputs_is_refused(format, tmp_path):
    model = small_model()
    model.backbone.get_layer("stage5_block1_2_norm").beta.assign(np.full(96, np.nan))

    with pytest.raises(ExportError, match=r"non-finite values \((embedding|P5)"):
        export(model, small_experiment(), format, tmp_path / FORMATS[format].file_name)

    assert not list(tmp_path.iterdir())


def replace_writer(monkeypatch, format, write):
    monkeypatch.setitem(export_job.FORMATS, format, replace(FORMATS[format], write=write))


def test_a_run_that_is_still_trained_may_delete_the_checkpoint_meanwhile(model, tmp_path, monkeypatch):
    checkpoint = tmp_path / "step-000000012.keras"
    checkpoint.write_bytes(b"weights")
    original = FORMATS["keras"].write

    def write(*arguments):
        checkpoint.unlink()
        return original(*arguments)

    replace_writer(monkeypatch, "keras", write)
    facts = facts_of(export(model, small_experiment(), "keras", tmp_path / "backbone.keras", checkpoint=checkpoint))

    assert (facts["checkpoint"], facts["weights_sha256"]) == (
        "step-000000012.keras",
        hashlib.sha256(b"weights").hexdigest(),
    )


def test_an_export_that_does_not_agree_with_keras_leaves_nothing(model, tmp_path, monkeypatch):
    original = FORMATS["saved_model"].write
    another = network_of(small_model(), small_experiment())
    another.heads["P5_temporal"].projection.bias.assign_add(np.full(16, 0.01))
    replace_writer(monkeypatch, "saved_model", lambda _, experiment, path: original(another, experiment, path))

    with pytest.raises(ExportError, match=r"does not agree .* for an input of shape \(2, 8, 40, 48, 3\)"):
        export(model, small_experiment(), "saved_model", tmp_path / "model")

    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_removed(model, tmp_path):
    left = tmp_path / ".backbone.keras.unfinished-0123456789ab.keras"
    left.write_bytes(b"half")

    export(model, small_experiment(), "keras", tmp_path / "backbone.keras")

    assert sorted(file.name for file in tmp_path.iterdir()) == [f"backbone.keras{end}" for end in ("", ".json", ".md")]


KILLED = """
import os, signal
from pathlib import Path
from hdc_keras.export import export
from tests.classification.small_classifier import EXPERIMENT as CLASSIFIER_EXPERIMENT
from tests.classification.small_classifier import FACTS as CLASSIFIER_FACTS
from tests.classification.small_classifier import small_classifier
from tests.export.small_exports import small_experiment, small_model

rename = Path.replace

def kill_or_rename(source, target):
    if Path(target).name == "backbone.keras":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target)

Path.replace = kill_or_rename
export(small_model(), small_experiment(), "keras", "backbone.keras")
"""


@pytest.mark.slow
def test_an_export_that_was_killed_between_its_card_and_its_model_is_repeated(model, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, timeout=120)
    left = {file.name for file in tmp_path.iterdir()}
    assert done.returncode == -signal.SIGKILL
    assert {"backbone.keras.json", "backbone.keras.md"} < left and "backbone.keras" not in left

    export(model, small_experiment(), "keras", tmp_path / "backbone.keras")

    assert sorted(file.name for file in tmp_path.iterdir()) == [f"backbone.keras{end}" for end in ("", ".json", ".md")]


@pytest.mark.parametrize("killed_before", [".md", ""])
def test_a_card_without_its_model_is_replaced(model, tmp_path, killed_before):
    path = tmp_path / "backbone.keras"
    old = export(model, small_experiment(), "keras", path, licence="an old licence")
    for end in dict.fromkeys([killed_before, ""]):
        path.with_name(path.name + end).unlink()

    export(model, small_experiment(), "keras", path)

    assert path.exists() and "an old licence" not in old.card.read_text()


@pytest.mark.parametrize("format", ["saved_model", "keras"])
def test_an_export_that_cannot_get_its_name_leaves_neither_card_nor_model(model, tmp_path, monkeypatch, format):
    original, path = FORMATS[format].write, tmp_path / FORMATS[format].file_name

    def write_while_another_program_takes_the_name(model, experiment, unfinished):
        original(model, experiment, unfinished)
        path.mkdir()
        (path / "theirs").touch()

    replace_writer(monkeypatch, format, write_while_another_program_takes_the_name)

    with pytest.raises(RunError, match="cannot be written"):
        export(model, small_experiment(), format, path)

    assert list(tmp_path.iterdir()) == [path] and [file.name for file in path.iterdir()] == ["theirs"]


def test_the_card_is_written_before_the_model(model, tmp_path, monkeypatch):
    appeared = []
    rename = Path.replace

    def record(source, target):
        appeared.append(Path(target).name)
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", record)
    export(model, small_experiment(), "keras", tmp_path / "backbone.keras")

    assert appeared == ["backbone.keras.json", "backbone.keras.md", "backbone.keras"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(appeared)


def test_differences_of_large_outputs_are_relative():
    wanted = {"a": np.array([0.5, 0.1]), "b": np.array([[200.0, 1.0]])}

    def found(**changed):
        return greatest_difference(wanted, {**wanted, **changed})

    assert found() == 0
    assert found(a=np.array([0.5, 0.11])) == pytest.approx(0.01)
    assert found(b=np.array([[200.0, 1.5]])) == pytest.approx(0.0025)
    assert found(a=np.array([0.5, np.nan])) == np.inf
    assert found(a=np.array([0.5])) == found(c=np.array([0.5])) == np.inf


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.md", "model.onnx.json"])
def test_nothing_is_overwritten(model, tmp_path, name):
    (tmp_path / name).write_text("mine")

    with pytest.raises(RunError, match=f"{name} exists and is not overwritten"):
        export(model, small_experiment(), "onnx", tmp_path / "model.onnx")

    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_an_impossible_export_is_refused_with_advice(model, tmp_path, monkeypatch):
    def refused(format, name, match):
        with pytest.raises(ConfigError, match=match):
            export(model, small_experiment(), format, tmp_path / name)

    refused("onnx", "model.tflite", r"must end in \.onnx")
    refused("onyx", "model.onnx", "unknown format `onyx`")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxruntime", None)
        patched.setitem(sys.modules, "ai_edge_litert", None)
        refused("onnx", "model.onnx", r"not installed \(onnxruntime\): pip install 'hdc-keras\[onnx\]'")
        refused("litert", "model.tflite", r"pip install 'hdc-keras\[litert\]'")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for format in VIDEO_FORMATS:
        refused(format, FORMATS[format].file_name, "KERAS_BACKEND=tensorflow. Received: jax")


@pytest.mark.parametrize("size", [(40, 48), (17, 90), (100, 31), (1, 1)])
def test_resizing_by_matrices_equals_antialiased_resizing(size):
    video = np.random.default_rng(0).integers(0, 256, (2, 3, *size, 3), dtype=np.uint8)

    ours = ops.convert_to_numpy(resize_by_matrices(video, (40, 48)))

    np.testing.assert_allclose(ours, ops.convert_to_numpy(resize_frames(video, (40, 48))), atol=1e-3)  # of 255


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 2, 2), (1, 3, 3), (3, 3, 3)])
@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_two_flat_poolings_equal_one_3d_pooling(size, strides):
    clips = np.random.default_rng(0).normal(size=(2, 5, 7, 8, 3)).astype("float32")
    whole, flat = keras.layers.MaxPooling3D(size, strides), FlatMaxPooling(size, strides)

    expected = ops.convert_to_numpy(whole(clips))

    np.testing.assert_array_equal(ops.convert_to_numpy(flat(clips)), expected)
    assert flat.compute_output_shape((None, None, 7, 8, 3)) == (None, None, *expected.shape[2:])


@pytest.mark.parametrize("format", FORMATS)
def test_a_classifier_is_exported_with_its_class_names_and_its_score(format, tmp_path):
    path = tmp_path / FORMATS[format].file_name
    model = small_classifier()

    exported = export(model, CLASSIFIER_EXPERIMENT, format, path, classifier=CLASSIFIER_FACTS)

    assert exported.difference < 1e-4 and FORMATS[format].read_labels(path) == ["a", "b", "c"]
    network = ClassNetwork(model, (20, 24))
    if FORMATS[format].takes_video:
        video = np.random.default_rng(1).integers(0, 256, (3, 9, 40, 48, 3), dtype=np.uint8)
        expected = network(video)["scores"]
    else:
        video = np.random.default_rng(1).random((3, 9, 16, 16, 3), dtype=np.float32)
        expected = ops.softmax(model.classify(video, training=False))
    found = FORMATS[format].open(path)(video)["scores"]
    np.testing.assert_allclose(found, ops.convert_to_numpy(expected), atol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-4)
    card = exported.card.read_text()
    assert "a classifier of 3 classes" in card and "In the order of the scores: `a`, `b`, `c`." in card
    assert "75.0 % of 4 test videos in 4 groups are right (95 % interval 30.0 to 95.0 %" in card
    assert "4 of the test videos were in pretraining" in card and "## Network" in card
    assert facts_of(exported)["outputs"].keys() == {"scores"}


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_cards_script_of_a_classifier_names_classes_without_hdc_keras(format, tmp_path):
    exported = export(small_classifier(), CLASSIFIER_EXPERIMENT, format, tmp_path / FORMATS[format].file_name)

    script = "import sys\nsys.modules['hdc_keras'] = None\n" + script_in(exported.card)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr[-3000:]
    scores = ast.literal_eval(done.stdout.splitlines()[-1])
    assert list(scores) == ["a", "b", "c"] and sum(scores.values()) == pytest.approx(1, abs=1e-3)


def test_a_classifier_in_bfloat16_is_exported_in_float32(tmp_path):
    exported = export(small_classifier("mixed_bfloat16"), CLASSIFIER_EXPERIMENT, "onnx", tmp_path / "model.onnx")

    assert exported.difference < 1e-4


def test_an_export_that_lost_its_class_names_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "keras", replace(FORMATS["keras"], read_labels=lambda path: ["b", "a", "c"]))

    with pytest.raises(ExportError, match="other class names"):
        export(small_classifier(), CLASSIFIER_EXPERIMENT, "keras", tmp_path / "classifier.keras")
    assert not list(tmp_path.iterdir())
