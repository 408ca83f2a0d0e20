"""Small networks drawn at random: kernels, strides, dilations, paddings, groups, norms, activations, small maps."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = (nn.ReLU, nn.ReLU, nn.Hardswish, nn.GELU, nn.Tanh, nn.Identity)


class Drawn(nn.Module):
    """Two to four convolutions with norms and activations, and a linear or convolutional head.

    Args:
        draw: draws the layers.
        size: the side of the input's maps.
    """

    def __init__(self, draw: random.Random, size: int):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for _ in range(draw.choice([2, 3, 4])):
            layer, size = _convolution(draw, width, size)
            width = layer.out_channels
            layers += [layer, *_norm(draw, width, size), draw.choice(ACTIVATIONS)()]
            if draw.random() < 0.2:
                layers.append(nn.AvgPool2d(3, 1, 1))
        self.body = nn.Sequential(*layers)
        self.pooled = draw.random() < 0.4
        self.head = nn.Linear(width, 5) if self.pooled else nn.Conv2d(width, 5, draw.choice([1, 3]), padding=1)

    def forward(self, x):
        x = self.body(x)
        return self.head(x.mean((2, 3)) if self.pooled else x)


def _convolution(draw: random.Random, width: int, size: int) -> tuple[nn.Conv2d, int]:
    """Returns a convolution whose output has 1 to 24 positions a side, and this number."""
    out, kernel = draw.choice([8, 16, 24]), draw.choice([1, 3, 3, 5])
    groups = draw.choice([g for g in (1, 1, 1, 1, 2, 4) if width % g == 0 and out % g == 0])
    while True:
        dilation, stride = draw.choice([1, 1, 2, 4, 12]), draw.choice([1, 1, 2])
        padding = draw.choice([dilation * (kernel // 2), dilation * (kernel // 2), 0, 1, dilation * (kernel - 1)])
        span = dilation * (kernel - 1) + 1
        left = (size + 2 * padding - span) // stride + 1
        if 1 <= left <= 24:
            return nn.Conv2d(width, out, kernel, stride, padding, dilation, groups), left


def _norm(draw: random.Random, width: int, size: int) -> list[nn.Module]:
    kind = draw.choice(["batch", "batch", "batch", "group", "none"])
    if kind == "none" or (kind == "group" and size == 1):
        return []
    norm = nn.BatchNorm2d(width, momentum=None) if kind == "batch" else nn.GroupNorm(draw.choice([1, 2, 8]), width)
    nn.init.normal_(norm.bias, 0, 0.5)
    nn.init.uniform_(norm.weight, 0.3, 1.5)
    return [norm]


def images(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth noise with a colour of each image's own."""
    coarse = torch.randn(count, 3, max(2, size // 3), max(2, size // 3), generator=generator)
    fine = 0.2 * torch.randn(count, 3, size, size, generator=generator)
    colour = 0.5 * torch.randn(count, 3, 1, 1, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bilinear") + colour + fine


def drawn(seed: int) -> tuple[nn.Module, list[torch.Tensor], torch.Tensor, random.Random]:
    """Returns a network with statistics of its images, calibration batches (8 to 32 images) and 64 held-out images."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    size = draw.choice([4, 6, 8, 12, 16])
    model = Drawn(draw, size).train()
    with torch.no_grad():
        for _ in range(8):
            model(images(16, size, generator))
    batches = images(draw.choice([8, 16, 32]), size, generator).split(draw.choice([1, 2, 4, 8]))
    return model.eval(), list(batches), images(64, size, generator), draw


def choice(found, draw: random.Random) -> np.ndarray:
    """Returns which atoms to keep: at least one of each group, at least one removed."""
    share = draw.choice([0.5, 0.7, 0.85])
    keep = np.array([draw.random() < share for _ in range(found.atoms)])
    for group in found:
        keep[found.spans[group.name].start] = True
    keep[found.spans[found.groups[-1].name].stop - 1] = False
    return keep
