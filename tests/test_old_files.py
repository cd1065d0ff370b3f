"""Files that version 0.1.0 wrote stay readable; see fixtures/README.md."""

import csv
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


def test_an_old_run_resumes_as_it_would_have_gone_on(old_run):
    expected = metrics_of(old_run.path)
    experiment = old_run.experiment()

    outcome = pretrain(experiment, old_run, load_videos(experiment).records, resume=True)

    assert outcome.step == 8 and outcome.finished
    before, after = expected[1], metrics_of(old_run.path)[1]
    # On the machine that wrote it, bit for bit; others round differently, and backends have their own random numbers.
    tolerance = 2e-2 if keras.backend.backend() == "tensorflow" else 0.5
    for name in before:
        if name.endswith("_loss"):
            assert float(after[name]) == pytest.approx(float(before[name]), rel=tolerance), name


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
