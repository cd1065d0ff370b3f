"""X3D computes what a plain PyTorch version of it does."""

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.backbones import X3D, build_backbone
from hdc_keras.backbones.depthwise import DepthwiseConvolution
from hdc_keras.backbones.video_backbone import PIXEL_MEAN, PIXEL_STD

CLIPS = np.random.default_rng(0).random((2, 5, 48, 40, 3)).astype("float32")
LEVELS = ("P2", "P3", "P4", "P5")
# Of the author's code: channels between the two layers of squeeze-and-excitation, by channels of the bottleneck.
SQUEEZED = {18: 8, 36: 8, 54: 8, 72: 8, 108: 8, 144: 16, 216: 16, 432: 32}


def plain_network(torch, filters, blocks):
    """X3D as its author's code lays it out, without its head, with random weights and statistics."""
    nn = torch.nn

    def conv(inputs, outputs, kernel=(1, 1, 1), stride=1, groups=1):
        padding = tuple(size // 2 for size in kernel)
        return nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), padding, groups=groups, bias=False)

    class SqueezeAndExcitation(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.fc1 = nn.Conv3d(channels, SQUEEZED[channels], 1)
            self.fc2 = nn.Conv3d(SQUEEZED[channels], channels, 1)

        def forward(self, x):
            return x * self.fc2(self.fc1(x.mean((2, 3, 4), keepdim=True)).relu()).sigmoid()

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride, excites):
            super().__init__()
            middle = int(2.25 * outputs)
            self.branch1 = None
            if inputs != outputs or stride != 1:
                self.branch1 = nn.Sequential(conv(inputs, outputs, stride=stride), nn.BatchNorm3d(outputs))
            self.a = nn.Sequential(conv(inputs, middle), nn.BatchNorm3d(middle), nn.ReLU())
            self.b = nn.Sequential(conv(middle, middle, (3, 3, 3), stride, middle), nn.BatchNorm3d(middle))
            self.se = SqueezeAndExcitation(middle) if excites else nn.Identity()
            self.c = nn.Sequential(nn.SiLU(), conv(middle, outputs), nn.BatchNorm3d(outputs))

        def forward(self, x):
            return torch.relu((x if self.branch1 is None else self.branch1(x)) + self.c(self.se(self.b(self.a(x)))))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            width = filters[0]
            stem = conv(3, width, (1, 3, 3), 2), conv(width, width, (5, 1, 1), groups=width), nn.BatchNorm3d(width)
            self.stem, self.stages = nn.Sequential(*stem, nn.ReLU()), nn.ModuleList()
            for outputs, count in zip(filters, blocks, strict=True):
                stage = [Block(outputs if b else width, outputs, 1 if b else 2, b % 2 == 0) for b in range(count)]
                self.stages.append(nn.Sequential(*stage))
                width = outputs
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.weight.data.uniform_(0.5, 1.5)
                    module.bias.data.uniform_(-0.5, 0.5)
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 1.5)

        def forward(self, x):
            x = self.stem(x)
            return [x := stage(x) for stage in self.stages]

    return Network().eval()


def carry_over(network, backbone):
    """Put the weights of a plain network into the Keras one; every weight on either side is used once."""
    parts = {"a.0": "1_conv", "a.1": "1_norm", "b.0": "2_conv", "b.1": "2_norm", "c.1": "3_conv", "c.2": "3_norm"}
    parts |= {"se.fc1": "excite_1", "se.fc2": "excite_2", "branch1.0": "shortcut_conv", "branch1.1": "shortcut_norm"}
    stems = {"stem.0": "stem_spatial_conv", "stem.1": "stem_conv", "stem.2": "stem_norm"}
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    values = {}
    for name, tensor in network.state_dict().items():
        module, part = name.rsplit(".", 1)
        if part == "num_batches_tracked":
            continue
        layer = stems.get(module)
        if layer is None:
            _, stage, block, place = module.split(".", 3)
            layer = f"stage{int(stage) + 2}_block{int(block) + 1}_{parts[place]}"
        part = norm[part] if layer.endswith("norm") else {"weight": "kernel"}.get(part, part)
        values[f"{layer}/{part}"] = tensor.numpy()
    variables = {variable.path: variable for variable in backbone.variables if "normalise_pixels" not in variable.path}
    assert set(values) == set(variables)
    for path, array in values.items():
        if array.ndim == 5:  # (out, in, time, height, width); depthwise and dense kernels lack some of these axes
            array = array.transpose(2, 3, 4, 1, 0).reshape(variables[path].shape)
        variables[path].assign(array)


def require_agreement(name, filters, blocks):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network, backbone = plain_network(torch, filters, blocks), build_backbone(name)
    carry_over(network, backbone)
    normalised = (CLIPS - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    with torch.no_grad():
        expected = network(torch.from_numpy(normalised.transpose(0, 4, 1, 2, 3)))

    maps = backbone.level_model(LEVELS)(CLIPS, training=False)

    for level, theirs in zip(LEVELS, expected, strict=True):
        theirs, ours = theirs.numpy().transpose(0, 2, 3, 4, 1), ops.convert_to_numpy(maps[level])
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=level)


def test_the_tiny_network_agrees_with_pytorch():
    require_agreement("x3d_tiny", (8, 16, 32, 64), (1, 2, 1, 1))


@pytest.mark.slow
def test_the_published_network_agrees_with_pytorch():
    require_agreement("x3d_s", (24, 48, 96, 192), (3, 5, 11, 7))


@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (5, 1, 1), (1, 3, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_small_depthwise_convolution_is_a_sum_over_shifted_clips(kernel_size, stride):
    layer = DepthwiseConvolution(kernel_size, stride)
    clips = np.random.default_rng(0).normal(size=(2, 4, 7, 6, 3)).astype("float32")

    found = ops.convert_to_numpy(layer(clips))

    kernel = ops.convert_to_numpy(layer.kernel)
    padded = np.pad(clips, [(0, 0), *((size // 2, size // 2) for size in kernel_size), (0, 0)])
    expected = np.zeros_like(clips)
    for time, row, column in np.ndindex(*kernel_size):
        expected += padded[:, time : time + 4, row : row + 7, column : column + 6] * kernel[time, row, column]
    np.testing.assert_allclose(found, expected[:, :, ::stride, ::stride], atol=1e-5)
    assert layer.compute_output_shape((None, 4, 7, 6, 3)) == (None, *found.shape[1:])


def test_the_small_layer_comes_back_from_its_config():
    layer = DepthwiseConvolution((3, 1, 3), 2, name="mine")

    assert DepthwiseConvolution.from_config(layer.get_config()).get_config() == layer.get_config()


def test_tiny_blocks_start_as_their_shortcut():
    backbone = build_backbone("x3d_tiny")
    ends = [backbone.get_layer(name).output for name in ("stage3_block1_relu", "stage3_block2_relu")]

    before, after = keras.Model(backbone.input, ends)(CLIPS)

    np.testing.assert_array_equal(ops.convert_to_numpy(after), ops.convert_to_numpy(before))


def test_small_arguments_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="as many entries as `stackwise_num_blocks`"):
        X3D((8, 16), (1,))
