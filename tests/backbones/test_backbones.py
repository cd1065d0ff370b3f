from typing import get_args

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.backbones import BACKBONES, R3D, R3D18, build_backbone
from hdc_keras.config import BackboneName
from hdc_keras.errors import ConfigError

CLIPS = np.random.default_rng(0).random((2, 8, 32, 32, 3)).astype("float32")
SMALL = {"stackwise_num_filters": [4, 6, 8, 10], "stackwise_num_blocks": [1, 2, 1, 1]}


def trainable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def test_r3d18_has_the_published_number_of_weights():
    # Tran et al. 2018, table 1, give 33.4 million with the 400-way classifier, which has 512 * 400 + 400.
    assert trainable(R3D18()) == 33_371_472 - 512 * 400 - 400


def test_r3d18_has_the_published_stage_shapes():
    outputs = R3D18(input_shape=(16, 112, 112, 3)).pyramid_outputs

    assert {level: tensor.shape[1:] for level, tensor in outputs.items()} == {
        "P2": (16, 56, 56, 64),
        "P3": (8, 28, 28, 128),
        "P4": (4, 14, 14, 256),
        "P5": (2, 7, 7, 512),
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_gives_its_stages_at_halving_sizes(name):
    backbone = build_backbone(name)
    maps = backbone.level_model(("P2", "P3", "P4", "P5"))(CLIPS)

    assert [tuple(maps[level].shape[1:4]) for level in maps] == [(8, 16, 16), (4, 8, 8), (2, 4, 4), (1, 2, 2)]
    np.testing.assert_allclose(ops.convert_to_numpy(backbone(CLIPS)), ops.convert_to_numpy(maps["P5"]), atol=1e-4)


def test_saving_and_loading_is_the_identity(tmp_path):
    backbone = R3D(**SMALL, name="mine")
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")

    assert loaded.get_config() == backbone.get_config() and loaded.name == "mine"
    assert list(loaded.pyramid_outputs) == ["P2", "P3", "P4", "P5"]
    np.testing.assert_allclose(ops.convert_to_numpy(loaded(CLIPS)), ops.convert_to_numpy(backbone(CLIPS)), atol=1e-6)


def test_mixed_precision_computes_in_bfloat16_and_survives_saving(tmp_path):
    backbone = R3D(**SMALL, dtype="mixed_bfloat16")
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")

    assert keras.backend.standardize_dtype(loaded(CLIPS).dtype) == "bfloat16"
    assert {str(v.dtype) for v in loaded.trainable_variables} == {"float32"}


def test_strided_convolutions_pad_both_sides_alike():
    backbone = R3D([1], [1])
    kernel = backbone.get_layer("stem_conv").kernel
    kernel.assign(np.zeros(kernel.shape))
    centre = np.zeros(kernel.shape, "float32")
    centre[1, 3, 3, 0] = 1
    kernel.assign(centre)
    stem = keras.Model(backbone.input, backbone.get_layer("stem_conv").output)
    normalised = keras.Model(backbone.input, backbone.get_layer("normalise_pixels").output)

    # As in PyTorch: output pixel (i, j) is centred on input pixel (2 i, 2 j).
    np.testing.assert_allclose(
        ops.convert_to_numpy(stem(CLIPS))[..., 0], ops.convert_to_numpy(normalised(CLIPS))[:, :, ::2, ::2, 0], atol=1e-5
    )


def test_pixels_are_normalised_by_kinetics_statistics():
    backbone = R3D(**SMALL)
    normalise = keras.Model(backbone.input, backbone.get_layer("normalise_pixels").output)
    mean = np.broadcast_to(np.float32([0.43216, 0.394666, 0.37645]), (1, 2, 4, 4, 3))

    np.testing.assert_allclose(ops.convert_to_numpy(normalise(mean)), 0.0, atol=1e-6)


def test_arguments_that_disagree_are_refused():
    with pytest.raises(ValueError, match="as many entries as `stackwise_num_blocks`"):
        R3D([1, 2], [1])


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="among P2, P3"):
        R3D([1, 2], [1, 1]).level_model(("P5",))


def test_the_config_knows_every_backbone():
    assert set(get_args(BackboneName)) == set(BACKBONES)


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean `r3d18`"):
        build_backbone("r3d-18")
