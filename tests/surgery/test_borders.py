"""Corrections at borders: constants count only where a tap lies inside the map, in compensation and in the refit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from sirfp.channels import find_groups
from sirfp.moments import inputs, take_moments
from sirfp.network.forward import inference
from sirfp.prune import cut


class Two(nn.Module):
    """A convolution with a norm, and a layer that reads it after an operation between."""

    def __init__(self, reader: nn.Module, between=lambda x: x):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.reader, self.between = reader, between
        nn.init.normal_(self.norm.bias, 0, 0.5)

    def forward(self, x):
        return self.reader(self.between(torch.relu(self.norm(self.first(x)))))


def pad(x):
    return F.pad(x, (4, 4, 4, 4))


READERS = {
    "dilation 12 on 8 x 8": (lambda: nn.Conv2d(16, 8, 3, padding=12, dilation=12), None, 8),
    "dilation 4 on 4 x 4": (lambda: nn.Conv2d(16, 8, 3, padding=4, dilation=4), None, 4),
    "3 x 3 on 2 x 2": (lambda: nn.Conv2d(16, 8, 3, padding=1), None, 2),
    "padding same": (lambda: nn.Conv2d(16, 8, 5, padding="same", dilation=4), None, 8),
    "padding in forward": (lambda: Conv2dSame(16, 8, 7, stride=2), None, 5),
    "strided groups": (lambda: nn.Conv2d(16, 8, 5, stride=2, padding=2, groups=2), None, 6),
    "reflected": (lambda: nn.Conv2d(16, 8, 3, padding=2, dilation=2, padding_mode="reflect"), None, 6),
    "zero pad": (lambda: nn.Conv2d(16, 8, 3, dilation=4), pad, 4),
    "zero pad and activation": (lambda: nn.Conv2d(16, 8, 3, dilation=4), lambda x: F.leaky_relu(pad(x) - 0.2), 4),
    "zero pad and mean": (lambda: nn.Linear(16, 8), lambda x: pad(x).mean((2, 3)), 4),
    "zero pad and concatenation": (
        lambda: nn.Conv2d(32, 8, 3, dilation=4), lambda x: torch.cat([pad(x), F.interpolate(x, scale_factor=3)], 1), 4
    ),
    "padded pooling": (lambda: nn.Conv2d(16, 8, 3), lambda x: F.avg_pool2d(x, 5, 1, 2), 4),
    "padded maximum": (lambda: nn.Conv2d(16, 8, 3), lambda x: F.max_pool2d(x, 3, 1, 1), 4),
    "1 x 1": (lambda: nn.Conv2d(16, 8, 1), None, 8),
}  # fmt: skip


def network(make, between, size: int) -> tuple[nn.Module, list[torch.Tensor], torch.Tensor]:
    """Returns a network with statistics of its own images, calibration batches and held-out images."""
    torch.manual_seed(1)
    model = Two(make(), *([between] if between else []))
    batches = [F.interpolate(torch.randn(8, 3, 2, 2), size=(size, size), mode="bilinear") for _ in range(9)]
    model.norm.momentum = None
    with torch.no_grad():
        for x in batches:
            model(x)
    return model.eval(), batches[:8], batches[8]


def half_of(found) -> np.ndarray:
    return np.arange(found.atoms) % 2 > 0


@pytest.mark.parametrize("make, between, size", READERS.values(), ids=READERS)
def test_emptied_channels_lose_nothing_on_average(make, between, size):
    """With norms' scales of zero, the mean output is that of the network before the cut."""
    model, _, images = network(make, between, size)
    with torch.no_grad():
        model.norm.weight[::2] = 0
        wanted = model(images)
        found = find_groups(model, images[:1])
        cut(model, found, half_of(found))
        error = (model(images) - wanted).transpose(0, 1).flatten(1).mean(1)
    assert model.first.out_channels == 8 and float(error.abs().max()) < 1e-5


@pytest.mark.parametrize("unfolded", [0, inputs.UNFOLDED], ids=["channels", "taps"])
@pytest.mark.parametrize("make, between, size", READERS.values(), ids=READERS)
def test_corrected_is_better_than_not_corrected(make, between, size, unfolded, monkeypatch):
    monkeypatch.setattr(inputs, "UNFOLDED", unfolded)
    model, batches, images = network(make, between, size)
    found = find_groups(model, images[:1])
    with inference(model):
        moments = take_moments(model, found, batches)
        wanted = model(images)
    errors = []
    for options in ({"bias_correction": False}, {}, {"moments": moments}):
        pruned = copy.deepcopy(model)
        cut(pruned, found, half_of(found), **options)
        with torch.no_grad():
            errors.append(float((pruned(images) - wanted).square().mean() / wanted.var()))
    none, bias, refit = errors
    assert bias < none and refit < none
    if unfolded and getattr(model.reader, "groups", 1) == 1:
        assert refit < 0.9 * bias


def test_a_shared_layer_on_maps_of_several_sizes_takes_the_mean_over_positions():
    """The same constants at levels of a pyramid: the taps lie in the padding to other shares."""

    class Pyramid(Two):
        def forward(self, x):
            x = torch.relu(self.norm(self.first(x)))
            return [self.reader(x), self.reader(F.max_pool2d(x, 4))]

    torch.manual_seed(0)
    model = Pyramid(nn.Conv2d(16, 8, 3, padding=1)).eval()
    with torch.no_grad():
        model.norm.weight[::2] = 0
    images = torch.randn(2, 3, 8, 8)
    found = find_groups(model, images[:1])
    with torch.no_grad():
        wanted = torch.cat([y.flatten(2) for y in model(images)], 2).mean((0, 2))
        cut(model, found, half_of(found))
        mean = torch.cat([y.flatten(2) for y in model(images)], 2).mean((0, 2))
    torch.testing.assert_close(mean, wanted, atol=1e-5, rtol=1e-4)
