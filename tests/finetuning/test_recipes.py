import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.config import ViewsConfig
from hdc_keras.finetuning.recipes import FINE_TUNING, changed
from hdc_keras.views.transforms import draw_geometry
from tests.finetuning.small_job import EXPERIMENT, RECIPE, SIZE


@pytest.mark.parametrize("name", FINE_TUNING)
def test_only_the_experiment_and_its_settings_change_a_recipe(name):
    published = FINE_TUNING[name]

    differences = changed(published, published.applied(EXPERIMENT))

    expected = {"frames", "size", "epochs", "batch_size"} | ({"stride"} if published.stride != 1 else set())
    expected |= {"drops"} if published.drops else set()
    assert set(differences) == expected
    assert differences["epochs"] == [published.epochs, 3] and differences["frames"] == [published.frames, 4]


def test_nothing_is_flipped_if_pretraining_did_not_flip():
    no_flip = EXPERIMENT.model_copy(update={"views": EXPERIMENT.views.model_copy(update={"flip": 0.0})})

    assert changed(RECIPE, FINE_TUNING["finetune-rspnet"].applied(no_flip)) == {"flip": [0.5, 0.0]}


def test_a_recipe_is_adapted_to_small_sets():
    vcop = FINE_TUNING["finetune-vcop"]

    assert changed(vcop, vcop.fitted(1000, has_validation=True)) == {}
    assert changed(vcop, vcop.fitted(5, has_validation=False)) == {
        "batch_size": [8, 5],
        "validation": [vcop.validation, 0.0],
    }


def test_a_fixed_crop_is_a_square_of_pixels_that_are_not_resized():
    settings = FINE_TUNING["finetune-vcop"].applied(EXPERIMENT).view_settings(SIZE)
    box = draw_geometry(50, SIZE, ViewsConfig.model_validate(settings), keras.random.SeedGenerator(0))["box"]
    top, left, height, width = np.moveaxis(ops.convert_to_numpy(box), 1, 0)

    np.testing.assert_allclose(height * SIZE[0], 16, rtol=1e-5)
    np.testing.assert_allclose(width * SIZE[1], 16, rtol=1e-5)
    assert top.std() > 0.02 and left.std() > 0.02
