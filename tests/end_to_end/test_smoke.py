"""`--smoke` shrinks what the user does not set, and says what it shrank."""

import pytest
from hdc_keras_cli.experiments import changes, resolve

pytestmark = pytest.mark.end_to_end


def smoke(*overrides, config="moving-shapes"):
    return resolve(config, None, None, list(overrides), smoke=True)


def test_what_the_user_sets_wins():
    experiment = smoke("train.epochs=3", "train.batch_size=64", "views.size=48", "data.limit=100", "evaluate.clips=5")

    train, data = experiment.train, experiment.data
    assert (train.epochs, train.batch_size, experiment.views.size) == (3, 64, 48)
    assert (data.limit, experiment.evaluate.clips) == (100, 5)
    assert 36 * data.shapes_per_pair[0] >= 64 and data.frames == 8


@pytest.mark.parametrize("micro_batches", [1, 2, 8, 16])
@pytest.mark.parametrize("accumulate", ["cached", "plain"])
def test_micro_batches_fit_into_the_batch(micro_batches, accumulate):
    settings = [f"train.micro_batches={micro_batches}", f"train.accumulate={accumulate}", "train.batch_size=64"]
    train = smoke(*settings[:2], config="videos").train

    assert train.batch_size % micro_batches == 0
    assert 4 <= train.batch_size <= 4 * micro_batches
    assert smoke(*settings, config="videos").train.batch_size == 64


def test_the_videos_fill_the_batch():
    data = smoke("train.micro_batches=40", "train.batch_size=40").data

    assert data.limit >= 40 and 36 * data.shapes_per_pair[0] >= 40


def test_the_result_is_valid_and_its_changes_are_listed():
    before, after = resolve("videos", None, None, [], smoke=False), smoke("train.epochs=3", config="videos")

    listed = changes(before, after)
    assert "data.frames 8" in listed and "train.batch_size 4" in listed and "views.size 32" in listed
    assert "data.decode_size 37x49" in listed and "train.epochs 3" in listed
    assert after.name == "videos-smoke"


def test_the_command_prints_in_one_line_what_it_shrank(hdc_keras_in_process, class_folder):
    done = hdc_keras_in_process(
        *("pretrain", "--data", class_folder, "--config", "videos", "--smoke", "--set", "train.batch_size=8"),
    )

    line = next(line for line in done.out.splitlines() if line.startswith("Smoke: "))
    assert "data.frames 8" in line and "batch_size" not in line
    assert done.code == 1 and "only 6 training videos, but `train.batch_size` is 8" in done.out
