import numpy as np
import pytest
import tensorflow as tf

from hdc_keras.config import HostLayer, load_experiment
from hdc_keras.data.host_policy import HOST_LAYERS, HostPolicy
from hdc_keras.errors import ConfigError

ARGUMENTS = {
    "Posterization": {"bits": 3},
    "RandAugment": {"augmentations_per_image": 2},
    "RandomBrightness": {"factor": 0.4},
    "RandomChannelShift": {"factor": 0.4},
    "RandomColorDegeneration": {"factor": 0.8},
    "RandomColorJitter": {
        "brightness_factor": 0.3,
        "contrast_factor": 0.3,
        "saturation_factor": 0.3,
        "hue_factor": 0.2,
    },
    "RandomContrast": {"factor": 0.5},
    "RandomCutout": {"height_factor": 0.4, "width_factor": 0.4},
    "RandomGaussianBlur": {"kernel_size": 5, "factor": 2.0},
    "RandomGrayscale": {"factor": 0.5},
    "RandomHue": {"factor": 0.4},
    "RandomInvert": {"factor": 0.5},
    "RandomPosterization": {"factor": 3},
    "RandomRotation": {"factor": 0.1},
    "RandomSaturation": {"factor": (0.1, 0.9)},
    "RandomSharpness": {"factor": (0.1, 0.9)},
    "RandomShear": {"x_factor": 0.3, "y_factor": 0.3},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": 0.4},
    "Solarization": {"threshold_factor": 0.5},
}
# Layers that are not required to treat equal images differently.
FIXED = {"AutoContrast", "Equalization", "Posterization", "Solarization", "RandomPosterization"}


def augmented(*layers: HostLayer, videos: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Clips that repeat one picture four times, two per video, and the same clips after a policy."""
    # The picture is dim and has low contrast, because layers that stretch colours would not change any other.
    picture = np.random.default_rng(0).integers(40, 200, (24, 32, 3), dtype=np.uint8)
    windows = np.broadcast_to(picture, (2, 4, *picture.shape))
    policy = HostPolicy(layers)
    dataset = tf.data.Dataset.from_tensors(windows).repeat(videos)
    return windows, np.stack([video.numpy() for video in dataset.map(policy, 2 if policy.is_parallel else None)])


@pytest.mark.parametrize("name", HOST_LAYERS)
def test_frames_of_a_clip_share_a_transformation_and_clips_do_not(name):
    windows, result = augmented(HostLayer(layer=name, arguments=ARGUMENTS.get(name, {})))

    assert result.shape == (12, *windows.shape) and result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.broadcast_to(result[:, :, :1], result.shape))
    assert (result != windows).any()
    if name not in FIXED:
        clips = result.reshape(24, -1)
        # Flips and inversions have only two outcomes, so the two clips of a video may be equal, but not in every video.
        assert len(np.unique(clips, axis=0)) >= 2
        assert any((one != two).any() for one, two in result.reshape(12, 2, -1))


@pytest.mark.parametrize("name", ["AutoContrast", "Equalization", "RandomContrast"])
def test_layers_that_depend_on_the_colours_of_an_image_use_those_of_the_whole_clip(name):
    # The clip becomes brighter. If frames were augmented one by one, all would be stretched to the same range.
    brightening = np.linspace(40, 200, 4, dtype=np.uint8)[:, None, None, None]
    clip = np.broadcast_to(brightening, (1, 4, 8, 8, 3)).copy()

    result = HostPolicy([HostLayer(layer=name, arguments=ARGUMENTS.get(name, {}))])(clip).numpy()

    means = result.mean(axis=(0, 2, 3, 4))
    assert (np.diff(means) > 0).all()


def test_different_frames_of_a_clip_are_flipped_together():
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)
    policy = HostPolicy([HostLayer(layer="RandomFlip")])

    results = policy(np.stack([frames] * 20)).numpy()

    flipped = [bool((result == frames[:, :, ::-1]).all()) for result in results]
    unchanged = [bool((result == frames).all()) for result in results]
    assert all(one != other for one, other in zip(flipped, unchanged, strict=True))
    assert 0 < sum(flipped) < 20


def test_layers_are_applied_in_sequence_and_can_come_from_a_config(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("views:\n  host_policy:\n    - {layer: RandAugment, arguments: {magnitude: 0.3}}\n")
    both = load_experiment(
        config, ["views.host_policy=[{layer: RandomFlip}, {layer: RandomInvert, arguments: {factor: [1.0, 1.0]}}]"]
    )

    windows, result = augmented(*both.views.host_policy)

    inverted = 255 - windows
    for clip in result.reshape(-1, *windows.shape[1:]):
        assert (clip == inverted[0]).all() or (clip == inverted[0][:, :, ::-1]).all()
    assert load_experiment(config).views.host_policy[0].arguments == {"magnitude": 0.3}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (HostLayer(layer="RandAugmnt"), "Did you mean `RandAugment`"),
        (HostLayer(layer="MixUp"), "unsupported layer `MixUp`. A layer must work on clips and keep their shape"),
        (HostLayer(layer="RandomFlip", arguments={"rat": 1}), r"RandomFlip does not accept \{'rat': 1\}.*rate=0.5"),
    ],
)
def test_a_layer_that_cannot_be_used_is_refused_with_the_reason(layer, expected):
    with pytest.raises(ConfigError, match=expected):
        HostPolicy([layer])
