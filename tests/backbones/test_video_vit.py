"""VideoMAE's transformers compute what a plain PyTorch version of them does."""

import re

import keras
import numpy as np
import pytest
from keras import ops

from hdc_keras.backbones import BACKBONES, VideoViT, build_backbone
from hdc_keras.backbones.video_backbone import PIXEL_MEAN, PIXEL_STD
from hdc_keras.backbones.video_vit import SinePositions
from hdc_keras.config import CLIP_MULTIPLES, Experiment, validate
from hdc_keras.errors import ConfigError

CLIPS = np.random.default_rng(0).random((2, 6, 32, 48, 3)).astype("float32")
LEVELS = ("P2", "P3", "P4", "P5")


def slow_positions(tokens, channels):
    """VideoMAE's table: sines in even channels, cosines in odd ones."""
    table = np.array(
        [[place / 10000 ** (2 * (number // 2) / channels) for number in range(channels)] for place in range(tokens)]
    )
    table[:, 0::2], table[:, 1::2] = np.sin(table[:, 0::2]), np.cos(table[:, 1::2])
    return table.astype("float32")


def plain_network(torch, channels, num_blocks, num_heads, tubelet):
    """VideoMAE's encoder with its classifier's norm, as its repository lays it out, with random weights."""
    nn = torch.nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(channels, 3 * channels, bias=False)
            self.q_bias, self.v_bias = (nn.Parameter(torch.randn(channels) * 0.3) for _ in range(2))
            self.proj = nn.Linear(channels, channels)

        def forward(self, x):
            bias = torch.cat([self.q_bias, torch.zeros(channels), self.v_bias])
            qkv = nn.functional.linear(x, self.qkv.weight, bias)
            qkv = qkv.reshape(*x.shape[:2], 3, num_heads, channels // num_heads).permute(2, 0, 3, 1, 4)
            scores = (qkv[0] * (channels // num_heads) ** -0.5) @ qkv[1].transpose(-2, -1)
            return self.proj((scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(x.shape))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.attn = nn.LayerNorm(channels, eps=1e-6), Attention()
            self.norm2 = nn.LayerNorm(channels, eps=1e-6)
            self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

        def forward(self, x):
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Conv3d(3, channels, tubelet, tubelet)
            self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))
            self.fc_norm = nn.LayerNorm(channels, eps=1e-6)
            for module in self.modules():
                if isinstance(module, nn.LayerNorm):
                    module.weight.data.uniform_(0.5, 1.5)
                    module.bias.data.uniform_(-0.5, 0.5)

        def forward(self, x):
            x = self.proj(x).flatten(2).transpose(1, 2)
            x, outputs = x + torch.from_numpy(slow_positions(x.shape[1], channels)), []
            for block in self.blocks:
                outputs.append(x := block(x))
            return outputs[num_blocks // 4 - 1 :: num_blocks // 4], self.fc_norm(x.mean(1))

    return Network().eval()


def carry_over(network, backbone):
    """Put the weights of a plain network into the Keras one; every weight on either side is used once."""
    names = {"norm1": "attention_norm", "norm2": "mlp_norm", "attn.proj": "attention_projection"}
    names |= {"mlp.0": "mlp_1", "mlp.2": "mlp_2"}
    arrays = {name: value.detach().numpy() for name, value in network.named_parameters()}
    values = {f"tubelets/{part}": arrays.pop(f"proj.{end}") for part, end in (("kernel", "weight"), ("bias", "bias"))}
    values["tubelets/kernel"] = values["tubelets/kernel"].transpose(2, 3, 4, 1, 0)
    values |= {f"norm/{part}": arrays.pop(f"fc_norm.{end}") for part, end in (("gamma", "weight"), ("beta", "bias"))}
    for name, array in arrays.items():
        block, module, part = re.fullmatch(r"blocks\.(\d+)\.(.+?)\.?(weight|bias|q_bias|v_bias)", name).groups()
        prefix = f"block{int(block) + 1}_" + names.get(module, "attention_qkv")
        part = {"q_bias": "query_bias", "v_bias": "value_bias"}.get(part, part)
        if "norm" in module:
            part = {"weight": "gamma", "bias": "beta"}[part]
        values[f"{prefix}/{'kernel' if part == 'weight' else part}"] = array.T
    assert set(values) == {variable.path for variable in backbone.trainable_variables}
    for variable in backbone.trainable_variables:
        variable.assign(values[variable.path])


def require_agreement(backbone, clips, network, torch):
    carry_over(network, backbone)
    normalised = (clips - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    with torch.no_grad():
        levels, feature = network(torch.from_numpy(normalised.transpose(0, 4, 1, 2, 3)))

    maps = backbone.level_model(LEVELS)(clips, training=False)

    for level, theirs in zip(LEVELS[:3], levels, strict=False):
        theirs, ours = theirs.numpy(), ops.convert_to_numpy(maps[level])
        np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=level)
    found = ops.convert_to_numpy(ops.mean(maps["P5"], axis=(1, 2, 3)))
    np.testing.assert_allclose(found, feature.numpy(), atol=1e-4 * np.abs(feature.numpy()).max())


def test_the_tiny_network_agrees_with_pytorch_at_any_length_and_size():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    backbone, network = build_backbone("videomae_vit_tiny"), plain_network(torch, 96, 4, 3, (2, 8, 8))

    for clips in (CLIPS, CLIPS[:1, :2], np.concatenate([CLIPS, CLIPS], axis=1)[:, :, :, :40]):
        require_agreement(backbone, clips, network, torch)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels", "num_heads"), [("videomae_vit_s", 384, 6), ("videomae_vit_b", 768, 12)])
def test_a_published_network_agrees_with_pytorch(name, channels, num_heads):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    require_agreement(build_backbone(name), CLIPS, plain_network(torch, channels, 12, num_heads, (2, 16, 16)), torch)


def test_positions_of_the_tiny_network_count_through_rows_and_frames():
    positions = ops.convert_to_numpy(SinePositions()(np.zeros((1, 4, 7, 5, 12), "float32")))

    np.testing.assert_allclose(positions.reshape(140, 12), slow_positions(140, 12), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 7, 32, 32, 3), (1, 8, 36, 32, 3), (1, 8, 32, 4, 3), (1, 0, 32, 32, 3)])
def test_tiny_clips_that_are_not_whole_tubelets_are_refused(shape):
    lengths = f"{shape[1]} frames and {shape[2]} x {shape[3]} pixels"
    with pytest.raises(ValueError, match=f"whole tubelets of 2 frames and 8 x 8 pixels. Received clips of {lengths}"):
        build_backbone("videomae_vit_tiny")(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=lengths):
        build_backbone("videomae_vit_tiny", input_shape=shape[1:])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="graphs of unknown lengths")
def test_a_tiny_graph_of_unknown_lengths_refuses_them_too():
    import tensorflow as tf

    backbone = build_backbone("videomae_vit_tiny")
    run = tf.function(backbone, input_signature=[tf.TensorSpec((None, None, None, None, 3))])

    assert run(np.zeros((1, 8, 16, 24, 3), "float32")).shape == (1, 4, 2, 3, 96)
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(np.zeros((1, 7, 16, 24, 3), "float32"))


def test_small_arguments_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match=r"`num_blocks` must be a multiple of 4\. Received: 6"):
        VideoViT(12, num_blocks=6)
    with pytest.raises(ValueError, match=r"multiple of 2 and of `num_heads` \(5\). Received: 12"):
        VideoViT(12, num_heads=5)


def test_the_config_refuses_what_the_small_and_large_networks_would():
    def config(**changes):
        values = {"model": {"backbone": "videomae_vit_s"}, "data": {"frames": 16}, "views": {"size": 112}}
        return validate(Experiment, values | changes, "here")

    with pytest.raises(ConfigError, match=r"data.frames \(15\): videomae_vit_s needs a multiple of 2"):
        config(data={"frames": 15})
    with pytest.raises(ConfigError, match=r"views.size \(120\): videomae_vit_s needs a multiple of 16"):
        config(views={"size": 120})
    assert config().views.size == 112
    multiples = {name: build_backbone(name).clip_multiples for name in BACKBONES if name.startswith("videomae")}
    assert {name: (time, width) for name, (time, _, width) in multiples.items()} == CLIP_MULTIPLES
