"""Files that version 0.1.0 wrote stay readable; see fixtures/README.md."""

import csv
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from hdc_keras.config import load_experiment
from hdc_keras.data.from_experiment import load_videos
from hdc_keras.data.shards import read_frames, read_prepared
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.training.pretraining import pretrain

FIXTURES = Path(__file__).with_name("fixtures")


@pytest.fixture
def old_run(tmp_path):
    return RunDirectory(shutil.copytree(FIXTURES / "run-0.1.0", tmp_path / "run"))


def metrics_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_an_old_run_resumes_to_its_end(old_run):
    first_epoch = metrics_of(old_run.path)[0]
    experiment = old_run.experiment()

    outcome = pretrain(experiment, old_run, load_videos(experiment).records, resume=True)

    assert outcome.step == 8 and outcome.finished
    metrics = metrics_of(old_run.path)
    # Columns that 0.1.0 did not know are empty in its epochs.
    assert len(metrics) == 2 and {name: metrics[0][name] for name in first_epoch} == first_epoch
    assert not any(value for name, value in metrics[0].items() if name not in first_epoch)
    assert np.isfinite([float(metrics[1][name]) for name in first_epoch if name.endswith("_loss")]).all()


def test_weights_and_momentum_of_an_old_checkpoint_belong_to_the_same_variables(old_run):
    # Gradients depend on rounding, which this small run amplifies. A step with zero gradients does not depend on it: it
    # moves each variable by its momentum and weight decay alone.
    expected = json.loads((old_run.path / "expected.json").read_text())
    model, _ = old_run.checkpoints.load(compiled=True)
    parts = {"backbone": model.backbone, "invariance": model.objective.invariance_weights, **model.objective.heads}

    def projections():
        return {
            f"{name}/{i}": value.ravel().astype("float64") @ np.cos(np.arange(value.size))
            for name, part in parts.items()
            for i, value in enumerate(part.get_weights())
        }

    before = projections()
    variables = model.trainable_variables
    model.optimizer.apply([keras.ops.zeros_like(variable) for variable in variables], variables)
    after = projections()

    assert list(before) == list(expected)
    for name, (value, moved) in expected.items():
        assert before[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        assert after[name] - before[name] == pytest.approx(moved, rel=1e-3, abs=1e-5 * max(1, abs(value))), name
    assert sum(moved != 0 for _, moved in expected.values()) == len(variables)


def test_an_old_checkpoint_keeps_heads_invariance_and_optimizer(old_run):
    model, file = old_run.checkpoints.load(compiled=True)

    assert file.name == "step-000000004.keras" and model.steps_taken == 4
    assert int(model.optimizer.iterations) == 4
    weights = keras.ops.convert_to_numpy(model.objective.invariance_weights.loss_weights())
    np.testing.assert_allclose(weights.sum(axis=0), [2.0, 2.0], atol=1e-5)
    assert np.ptp(weights[weights > 0]) > 0.1
    for head in model.objective.heads.values():
        assert np.abs(keras.ops.convert_to_numpy(head.projection.bias)).max() > 0  # trained


def test_an_old_prepared_set_is_read(shapes_folder):
    records, failures = read_prepared(FIXTURES / "prepared-0.1.0")

    assert len(records) == 8 and not failures
    assert {record.label for record in records} == {"across", "around"}
    assert read_frames(records[0].stored, np.arange(24)).shape == (24, 32, 32, 3)


def test_an_old_config_is_valid():
    assert load_experiment(FIXTURES / "run-0.1.0" / "config.yaml").model.backbone == "s3d_tiny"
