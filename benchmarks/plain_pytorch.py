"""A plain PyTorch loop of the work of an HDC step, as a competent user would write it: the peer of `gpu.py`.

Three views of each video (crop, flip, blur, colour), R3D-18 (or another residual network of basic blocks), four
projection heads, InfoNCE, SGD. It imports nothing of hdc_keras, and leaves out what is HDC's own: weights by
invariance, the guard against NaN, and the record of each level.
"""

import torch
import torch.nn.functional as F
from torch import nn

PIXEL_MEAN, PIXEL_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


class Block(nn.Module):
    """The basic block of R3D."""

    def __init__(self, width, filters, stride):
        super().__init__()
        self.conv1 = nn.Conv3d(width, filters, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm3d(filters)
        self.conv2 = nn.Conv3d(filters, filters, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm3d(filters)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride != 1 or width != filters:
            shortcut = nn.Conv3d(width, filters, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm3d(filters))

    def forward(self, x):
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(y.add_(self.shortcut(x)))


class R3D(nn.Module):
    """R3D; returns the pooled features of its stages."""

    def __init__(self, filters, blocks):
        super().__init__()
        stem = nn.Conv3d(3, filters[0], (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm3d(filters[0]), nn.ReLU(inplace=True))
        stages, width = [], filters[0]
        for stage, (count, number) in enumerate(zip(filters, blocks, strict=True)):
            strides = [2 if stage and not block else 1 for block in range(number)]
            widths = [width, *[count] * (number - 1)]
            stages.append(nn.Sequential(*[Block(w, count, s) for w, s in zip(widths, strides, strict=True)]))
            width = count
        self.stages = nn.ModuleList(stages)

    def forward(self, x):
        x, pooled = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x.float().mean((2, 3, 4)))
        return pooled


NETWORKS = {"r3d18": ([64, 128, 256, 512], [2, 2, 2, 2]), "r3d_tiny": ([12, 24, 48, 96], [1, 1, 1, 1])}


def augmentation(videos, device):
    """Draws for one view of each video: a crop, a flip, a blur and a change of colour."""

    def uniform(low, high):
        return torch.empty(videos, device=device).uniform_(low, high)

    area, aspect = uniform(0.3, 1.0), uniform(-0.2877, 0.2877).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(x)
    affine = torch.stack([torch.stack([width * flip, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    colour = [uniform(0.6, 1.4) for _ in range(3)]
    return affine, uniform(0.1, 1.0), colour


def view(clips, draws, size):
    """(videos, time, height, width, 3) uint8 -> (videos, 3, time, size, size) in channels_last_3d."""
    affine, sigma, (brightness, contrast, saturation) = draws
    videos, time = clips.shape[:2]
    frames = clips.permute(0, 1, 4, 2, 3).flatten(0, 1).float().div_(255)
    grid = F.affine_grid(affine, (videos, 3, size, size), align_corners=False).repeat_interleave(time, 0)
    frames = F.grid_sample(frames, grid, align_corners=False)
    # A separable Gaussian blur, one kernel for each video.
    offsets = torch.arange(-3, 4, device=clips.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    frames = frames.view(1, videos * time * 3, size, size)
    weights = kernel.repeat_interleave(time * 3, 0)
    frames = F.conv2d(frames, weights[:, None, None], padding=(0, 3), groups=weights.shape[0])
    frames = F.conv2d(frames, weights[:, None, :, None], padding=(3, 0), groups=weights.shape[0])
    x = frames.view(videos, time, 3, size, size)
    x = x * brightness.view(-1, 1, 1, 1, 1)
    grey = x.mean(2, keepdim=True)
    x = grey + saturation.view(-1, 1, 1, 1, 1) * (x - grey)
    level = grey.mean((1, 3, 4), keepdim=True)
    x = (level + contrast.view(-1, 1, 1, 1, 1) * (x - level)).clamp(0, 1).permute(0, 2, 1, 3, 4)
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last_3d)


class PlainLoop:
    """Trains a network with the contrast of HDC: spatial at two shallow stages, temporal at two deep ones.

    Args:
        name: a key of `NETWORKS`.
        size: height and width of a view.
        device: "cpu" or "cuda".
        bfloat16: whether to use autocast with bfloat16.
    """

    def __init__(self, name, size, device, bfloat16=False):
        self.size, self.device, self.bfloat16 = size, device, bfloat16
        filters, blocks = NETWORKS[name]
        self.network = R3D(filters, blocks).to(device, memory_format=torch.channels_last_3d)
        heads = [
            nn.Sequential(nn.Linear(n, n, bias=False), nn.BatchNorm1d(n), nn.ReLU(inplace=True), nn.Linear(n, 128))
            for n in filters
        ]
        self.heads = nn.ModuleList(heads).to(device)
        parameters = [*self.network.parameters(), *self.heads.parameters()]
        options = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
        self.optimizer = torch.optim.SGD(parameters, **options, foreach=device == "cpu", fused=device != "cpu")

    def step(self, windows):
        """One training step on windows (videos, 2, time, height, width, 3) uint8 on the device; returns the loss."""
        videos = len(windows)
        with torch.no_grad():
            anchor, other = augmentation(videos, self.device), augmentation(videos, self.device)
            own_colour = (*anchor[:2], augmentation(videos, self.device)[2])
            pairs = ((windows[:, 0], anchor), (windows[:, 1], own_colour), (windows[:, 0], other))
            clips = torch.cat([view(clips, draws, self.size) for clips, draws in pairs])
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            pooled = self.network(clips)
        loss = 0
        for place, (features, head) in enumerate(zip(pooled, self.heads, strict=True)):
            z = F.normalize(head(features)).view(3, videos, -1)
            logits = z[0] @ z[1 if place < 2 else 2].T / 0.1
            labels = torch.arange(videos, device=self.device)
            loss = loss + (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()
