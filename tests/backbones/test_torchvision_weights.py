import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.backbones import build_backbone
from hdc_keras.backbones.r2plus1d import R2Plus1D
from hdc_keras.backbones.resnet3d import MC3, R3D
from hdc_keras.backbones.torchvision_weights import load_torchvision_weights
from hdc_keras.backbones.video_backbone import PIXEL_MEAN, PIXEL_STD
from hdc_keras.errors import WeightsError

torch = pytest.importorskip("torch", reason="reading .pth files needs PyTorch: pip install -e '.[torch]'")
CLIPS = np.random.default_rng(0).random((2, 8, 48, 48, 3)).astype("float32")


def conv3d(inputs, outputs, kernel, stride):
    """A convolution as in torchvision's models: padded by half the kernel, without a bias."""
    padding = tuple(k // 2 for k in kernel)
    return torch.nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)


class Cube(torch.nn.Sequential):
    """torchvision's Conv2Plus1D."""

    def __init__(self, inputs, outputs, middle, stride):
        super().__init__(
            conv3d(inputs, middle, (1, 3, 3), (1, stride, stride)),
            torch.nn.BatchNorm3d(middle),
            torch.nn.ReLU(),
            conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1)),
        )


class Block(torch.nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, inputs, outputs, stride, factorised, sees_time):
        super().__init__()
        strides, kernel = (stride if sees_time else 1, stride, stride), (3 if sees_time else 1, 3, 3)
        middle = (inputs * outputs * 27) // (inputs * 9 + 3 * outputs)

        def cube(width, steps):
            return Cube(width, outputs, middle, steps[1]) if factorised else conv3d(width, outputs, kernel, steps)

        self.conv1 = torch.nn.Sequential(cube(inputs, strides), torch.nn.BatchNorm3d(outputs), torch.nn.ReLU())
        self.conv2 = torch.nn.Sequential(cube(outputs, (1, 1, 1)), torch.nn.BatchNorm3d(outputs))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = conv3d(inputs, outputs, (1, 1, 1), strides)
            self.downsample = torch.nn.Sequential(shortcut, torch.nn.BatchNorm3d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv2(self.conv1(x)) + shortcut)


class Network(torch.nn.Module):
    """The layout of torchvision's VideoResNet, with its names; random weights and statistics."""

    def __init__(self, name):
        super().__init__()
        factorised = name == "r2plus1d18"
        norm, relu = torch.nn.BatchNorm3d, torch.nn.ReLU
        if factorised:
            first, second = conv3d(3, 45, (1, 7, 7), (1, 2, 2)), conv3d(45, 64, (3, 1, 1), (1, 1, 1))
            self.stem = torch.nn.Sequential(first, norm(45), relu(), second, norm(64), relu())
        else:
            self.stem = torch.nn.Sequential(conv3d(3, 64, (3, 7, 7), (1, 2, 2)), norm(64), relu())
        width = 64
        for stage, outputs in enumerate((64, 128, 256, 512), 1):
            stride = 1 if stage == 1 else 2
            # torchvision's mc3_18 has Conv3DNoTemporal in all layers but the first.
            kind = factorised, stage == 1 or name != "mc3_18"
            blocks = Block(width, outputs, stride, *kind), Block(outputs, outputs, 1, *kind)
            setattr(self, f"layer{stage}", torch.nn.Sequential(*blocks))
            width = outputs
        self.fc = torch.nn.Linear(512, 400)
        for module in self.modules():
            if isinstance(module, norm):
                for tensor, low, high in (
                    (module.weight.data, 0.5, 1.5),
                    (module.bias.data, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 1.5),
                ):
                    tensor.uniform_(low, high)

    def forward(self, x):
        x, levels = self.stem(x), {}
        for level, layer in (("P2", self.layer1), ("P3", self.layer2), ("P4", self.layer3), ("P5", self.layer4)):
            levels[level] = x = layer(x)
        return levels


@pytest.fixture(scope="module", params=["r3d18", "mc3_18", "r2plus1d18"])
def saved(request, tmp_path_factory):
    """Name of the network, the PyTorch model, and its state dict in a file."""
    torch.manual_seed(0)
    network = Network(request.param).eval()
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.save(network.state_dict(), path)
    return request.param, network, path


def test_the_converted_network_agrees_with_pytorch(saved):
    name, network, path = saved
    normalised = (CLIPS - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    with torch.no_grad():
        expected = network(torch.from_numpy(normalised.transpose(0, 4, 1, 2, 3)))

    backbone = build_backbone(name)
    load_torchvision_weights(backbone, path)
    maps = backbone.level_model(("P2", "P3", "P4", "P5"))(CLIPS, training=False)

    for level, ours in maps.items():
        theirs = expected[level].numpy().transpose(0, 2, 3, 4, 1)
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ops.convert_to_numpy(ours) / scale, theirs / scale, atol=1e-4, err_msg=level)


def test_weights_of_another_network_are_refused_and_nothing_changes(saved):
    name, _, path = saved
    other = build_backbone("r2plus1d18" if name == "r3d18" else "r3d18")
    before = [value.copy() for value in other.get_weights()]

    with pytest.raises(WeightsError, match="does not hold the weights of"):
        load_torchvision_weights(other, path)
    assert all(np.array_equal(a, b) for a, b in zip(before, other.get_weights(), strict=True))


def test_a_network_with_fewer_blocks_is_refused(saved):
    name, _, path = saved
    network = {"r3d18": R3D, "mc3_18": MC3, "r2plus1d18": R2Plus1D}[name]([64, 128, 256, 512], [1, 1, 1, 1])
    with pytest.raises(WeightsError, match=r"layer1.1.conv1.0(.0)?.weight: unexpected"):
        load_torchvision_weights(network, path)


def test_a_file_that_is_not_a_state_dict_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(WeightsError, match="is not a PyTorch state dict"):
        load_torchvision_weights(build_backbone("r3d_tiny"), tmp_path / "text.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_torchvision_weights(build_backbone("r3d_tiny"), tmp_path / "none.pth")


def test_backbones_that_torchvision_does_not_have_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no weights for `c3d_tiny`"):
        load_torchvision_weights(build_backbone("c3d_tiny"), tmp_path / "none.pth")


def test_a_loaded_backbone_saves_and_loads(saved, tmp_path):
    name, _, path = saved
    backbone = build_backbone(name)
    load_torchvision_weights(backbone, path)
    backbone.save(tmp_path / "backbone.keras")

    loaded = keras.models.load_model(tmp_path / "backbone.keras")

    for one, other in zip(backbone.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
