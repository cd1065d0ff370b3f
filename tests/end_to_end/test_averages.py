"""Moving averages of the weights, from `pretrain` with a queue of negatives to `evaluate`, `embed` and `export`."""

import json

import keras
import numpy as np
import pyarrow.parquet as parquet
import pytest

import hdc_keras
from hdc_keras.errors import ConfigError

SETTINGS = [
    *("data.frames=4", "data.decode_size=[20, 20]", "views.size=16", "train.batch_size=4", "train.epochs=3"),
    *("train.ema=0.5", "contrast.negatives=queue", "contrast.queue_length=8", "evaluate.clips=1"),
]


@pytest.mark.slow
def test_averages_are_evaluated_embedded_and_exported(class_folder, hdc_keras_in_process, tmp_path):
    def run(*arguments):
        done = hdc_keras_in_process(*arguments)
        assert done.code == 0, done.out
        return done

    sets = [argument for value in SETTINGS for argument in ("--set", value)]
    run("pretrain", "--config", "videos-cpu", "--data", class_folder, *sets, "--run", "run")
    for weights in ("auto", "raw"):
        run("evaluate", "--run", "run", "--protocol", "knn", "--weights", weights)
        run("embed", "--run", "run", "--out", f"{weights}.parquet", "--weights", weights)
    run("export", "--run", "run", "--format", "keras", "--out", "backbone.keras")

    results = [json.loads(file.read_text()) for file in (tmp_path / "run" / "results").glob("knn-*.json")]
    assert sorted(result.get("weights", "raw") for result in results) == ["ema", "raw"]
    tables = [parquet.read_table(tmp_path / f"{weights}.parquet") for weights in ("auto", "raw")]
    averaged, raw = (np.stack(table["P5"].to_numpy(zero_copy_only=False)) for table in tables)
    assert np.abs(averaged - raw).max() > 1e-4
    assert "moving average (momentum 0.5)" in (tmp_path / "backbone.keras.md").read_text()
    exported = keras.models.load_model(tmp_path / "backbone.keras")
    backbones = [hdc_keras.load(tmp_path / "run", weights=weights).backbone for weights in ("ema", "raw")]
    clips = np.random.default_rng(0).random((1, 4, 16, 16, 3), np.float32)
    found, expected, other = (keras.ops.convert_to_numpy(_last(network(clips))) for network in (exported, *backbones))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - other).max() > 1e-4


def _last(maps):
    return maps["P5"] if isinstance(maps, dict) else maps


def test_averages_that_a_run_does_not_keep_are_refused(untrained_run, hdc_keras_in_process):
    done = hdc_keras_in_process("evaluate", "--run", untrained_run, "--protocol", "knn", "--weights", "ema")

    assert done.code == 2 and "its `train.ema` is empty" in " ".join(done.out.split())
    with pytest.raises(ConfigError, match="keeps no moving averages"):
        hdc_keras.load(untrained_run, weights="ema")
