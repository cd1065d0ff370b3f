from itertools import pairwise
from typing import get_args

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.backbones import BACKBONES, R3D, build_backbone
from hdc_keras.config import BackboneName, Experiment, validate
from hdc_keras.errors import ConfigError

CLIPS = np.random.default_rng(0).random((2, 8, 32, 32, 3)).astype("float32")
SMALL = {"stackwise_num_filters": [4, 6, 8, 10], "stackwise_num_blocks": [1, 2, 1, 1]}


def trainable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


# Number of weights including the published classifier, and of the classifier alone. Those of the residual networks and
# of S3D are torchvision's exact numbers for Kinetics-400. Tran et al. 2018 print 33.4 million for R3D-18, 63.6 million
# for R3D-34 and 31.5 million for R(2+1)D-18. C3D has the 78.4 million of Tran et al. 2015, with three fully connected
# layers and the 101 classes of UCF101. `r3d10` has one block per stage; VCOP prints 14.4 million for it, without a
# classifier. Tong et al. 2022 print 22 and 87 million for VideoMAE's ViT-S and ViT-B,
# Feichtenhofer 2020 3.76 million for X3D-S, and its author's repository 3.8.
PUBLISHED = {
    "r3d18": (33_371_472, 512 * 400 + 400),
    "r2plus1d18": (31_505_325, 512 * 400 + 400),
    "mc3_18": (11_695_440, 512 * 400 + 400),
    "s3d": (8_320_048, 1024 * 400 + 400),
    "x3d_s": (3_794_322, 192 * 432 + 2 * 432 + 432 * 2048 + 2048 * 400 + 400),
    "videomae_vit_s": (22_033_936, 384 * 400 + 400),
    "videomae_vit_b": (86_534_800, 768 * 400 + 400),
    "c3d": (78_409_573, (8192 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 101),
}
PUBLISHED_MILLIONS = {"r3d34": (63.6, 512 * 400 + 400), "r3d10": (14.4, 0)}
# Shapes of the feature maps of 16 x 112 x 112 clips.
RESNET_STAGES = {"P2": (16, 56, 56, 64), "P3": (8, 28, 28, 128), "P4": (4, 14, 14, 256), "P5": (2, 7, 7, 512)}
STAGES = {
    "r3d18": RESNET_STAGES,
    "r3d34": RESNET_STAGES,
    "r3d10": RESNET_STAGES,
    "r2plus1d18": RESNET_STAGES,
    "mc3_18": {"P2": (16, 56, 56, 64), "P3": (16, 28, 28, 128), "P4": (16, 14, 14, 256), "P5": (16, 7, 7, 512)},
    "c3d": {"P2": (16, 56, 56, 128), "P3": (8, 28, 28, 256), "P4": (4, 14, 14, 512), "P5": (2, 7, 7, 512)},
    "s3d": {"P2": (8, 28, 28, 192), "P3": (8, 14, 14, 480), "P4": (4, 7, 7, 832), "P5": (2, 3, 3, 1024)},
    "x3d_s": {"P2": (16, 28, 28, 24), "P3": (16, 14, 14, 48), "P4": (16, 7, 7, 96), "P5": (16, 4, 4, 192)},
    "videomae_vit_s": dict.fromkeys(("P2", "P3", "P4", "P5"), (8, 7, 7, 384)),
    "videomae_vit_b": dict.fromkeys(("P2", "P3", "P4", "P5"), (8, 7, 7, 768)),
}
# Time, height and width of P2 of 8 x 32 x 32 clips, where they are not (8, 16, 16).
FIRST_SIZES = {
    "s3d_tiny": (4, 8, 8),
    "x3d_tiny": (8, 8, 8),
    "r3d_small": (8, 8, 8),
    "r3d_small_motion": (8, 8, 8),
    "videomae_vit_tiny": (4, 4, 4),
}
TINY = sorted(name for name in BACKBONES if name.endswith(("_tiny", "_small", "_motion")))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_published_number_of_weights(name):
    total, classifier = PUBLISHED[name]

    assert trainable(build_backbone(name)) == total - classifier


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_networks_have_the_published_number_of_weights_in_millions(name):
    millions, classifier = PUBLISHED_MILLIONS[name]

    assert (trainable(build_backbone(name)) + classifier) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", STAGES)
def test_published_networks_have_the_published_stage_shapes(name):
    outputs = build_backbone(name, input_shape=(16, 112, 112, 3)).pyramid_outputs

    assert {level: tensor.shape[1:] for level, tensor in outputs.items()} == STAGES[name]


def test_every_backbone_is_tiny_or_compared_with_published_figures():
    assert set(BACKBONES) == set(STAGES) | set(TINY) == set(PUBLISHED) | set(PUBLISHED_MILLIONS) | set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_each_stage_halves_the_frames_and_the_last_is_the_output(name):
    backbone = build_backbone(name)
    maps = backbone.level_model(("P2", "P3", "P4", "P5"))(CLIPS)

    sizes = [tuple(maps[level].shape[1:4]) for level in maps]
    assert sizes[0] == FIRST_SIZES.get(name, (8, 16, 16))
    shrink = 1 if name == "videomae_vit_tiny" else 2  # a plain transformer keeps its tokens
    assert all(new[1] == old[1] // shrink and new[2] == old[2] // shrink for old, new in pairwise(sizes))
    np.testing.assert_allclose(ops.convert_to_numpy(backbone(CLIPS)), ops.convert_to_numpy(maps["P5"]), atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_saving_and_loading_is_the_identity(tmp_path, name):
    backbone = build_backbone(name, name="mine")
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")

    assert loaded.get_config() == backbone.get_config() and loaded.name == "mine"
    assert list(loaded.pyramid_outputs) == ["P2", "P3", "P4", "P5"]
    np.testing.assert_allclose(ops.convert_to_numpy(loaded(CLIPS)), ops.convert_to_numpy(backbone(CLIPS)), atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_mixed_precision_computes_in_bfloat16_and_survives_saving(tmp_path, name):
    backbone = build_backbone(name, dtype="mixed_bfloat16")
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")

    assert keras.backend.standardize_dtype(loaded(CLIPS).dtype) == "bfloat16"
    assert {str(v.dtype) for v in loaded.trainable_variables} == {"float32"}


@pytest.mark.parametrize("name", TINY)
def test_channels_come_last_whatever_the_users_setting(name):
    usual = build_backbone(name)
    keras.config.set_image_data_format("channels_first")
    try:
        backbone = build_backbone(name)
    finally:
        keras.config.set_image_data_format("channels_last")
    backbone.set_weights(usual.get_weights())

    np.testing.assert_allclose(
        ops.convert_to_numpy(backbone(CLIPS)), ops.convert_to_numpy(usual(CLIPS)), rtol=1e-4, atol=1e-5
    )


def test_strided_convolutions_pad_both_sides_equally():
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


def test_a_network_that_sees_differences_does_not_see_frames():
    backbone = build_backbone("r3d_small_motion")
    seen = keras.Model(
        backbone.input, [backbone.get_layer(name).output for name in ("normalise_pixels", "frame_differences")]
    )
    frames, differences = map(ops.convert_to_numpy, seen(CLIPS))

    np.testing.assert_array_equal(differences[:, 0], 0)
    np.testing.assert_allclose(differences[:, 1:], 4 * (frames[:, 1:] - frames[:, :-1]), rtol=1e-4, atol=1e-5)
    assert backbone.get_layer("stem_conv").kernel.shape[-2] == 3
    brighter = [ops.convert_to_numpy(backbone(clips)) for clips in (CLIPS * 0.5, CLIPS * 0.5 + 0.25)]
    np.testing.assert_allclose(*brighter, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=r"data.frames \(1\): r3d_small_motion sees differences between frames"):
        validate(Experiment, {"data": {"frames": 1}, "model": {"backbone": "r3d_small_motion"}}, "here")


def test_pixels_are_normalised_by_kinetics_statistics():
    backbone = R3D(**SMALL)
    normalise = keras.Model(backbone.input, backbone.get_layer("normalise_pixels").output)
    mean = np.broadcast_to(np.float32([0.43216, 0.394666, 0.37645]), (1, 2, 4, 4, 3))

    np.testing.assert_allclose(ops.convert_to_numpy(normalise(mean)), 0.0, atol=1e-6)


def test_arguments_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="as many entries as `stackwise_num_blocks`"):
        R3D([1, 2], [1])


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="among P2, P3"):
        R3D([1, 2], [1, 1]).level_model(("P5",))


def test_the_config_knows_every_backbone():
    assert set(get_args(BackboneName)) == set(BACKBONES)


def test_an_unknown_backbone_suggests_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean `r3d18`"):
        build_backbone("r3d-18")
