"""Calls from one place in the code share a size, however often a loop around it runs."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from cut_proofs import half_of, prove
from torch import nn

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask


def pooled(image: torch.Tensor) -> torch.Tensor:
    return image.reshape(1, 16, -1).mean(2)


class ByImage(nn.Module):
    """Works image by image, as detectors do, and writes widths inside the loop and after it."""

    def __init__(self):
        super().__init__()
        self.i, self.j = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1)
        self.o = nn.Linear(40, 5)

    def forward(self, x):
        x = self.i(x).relu()
        means, sums = [], []
        for image in x:
            means.append(pooled(image))
            sums.append(torch.zeros(1, 16, dtype=x.dtype) + image.mean((1, 2)))
        x = self.j(x).reshape(len(x), 24, -1).mean(2)
        return self.o(torch.cat([torch.cat(means) + torch.cat(sums), x], 1))


class Twice(ByImage):
    """Calls one helper from two places, with different channels."""

    def forward(self, x):
        x = self.i(x).relu()
        y = [self.both(image[:, None], 16) for image in x], [self.both(image[:, None], 24) for image in self.j(x)]
        return self.o(torch.cat([torch.cat(part) for part in y], 1))

    def both(self, image, width):
        return image.transpose(0, 1).reshape(1, width, -1).mean(2)


class ByWidth(nn.Module):
    """A loop whose rounds have channels of different layers: each call has its own size."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 12, 1), nn.Conv2d(12, 20, 1), nn.Conv2d(20, 8, 1)])
        self.o = nn.Linear(40, 5)

    def forward(self, x):
        parts = []
        for layer, width in zip(self.layers, (12, 20, 8), strict=True):
            x = layer(x)
            parts.append(x.reshape(-1, width, 64).mean(2))
        return self.o(torch.cat(parts, 1))


class Recursive(ByImage):
    """A function that calls itself for each image."""

    def forward(self, x):
        x = self.i(x).relu()
        return self.o(torch.cat([self.means(x, 16), self.means(self.j(x), 24)], 1))

    def means(self, x, width):
        first = x[0].reshape(1, width, -1).mean(2)
        return torch.cat([first, self.means(x[1:], width)]) if len(x) > 1 else first


class Indexed(Recursive):
    """Many calls by an object's `__getitem__`, which Python specialises after some of them."""

    def means(self, x, width):
        views = Views(x, width)
        return torch.stack([torch.cat([views[i] for i in range(len(x))]) for _ in range(10)]).mean(0)


class Views:
    def __init__(self, x, width):
        self.x, self.width = x, width

    def __getitem__(self, i):
        return self.x[i].reshape(1, self.width, -1).mean(2)


class Evaluated(Recursive):
    """Code that is compiled anew for each image."""

    def means(self, x, width):
        return torch.cat([eval("image.reshape(1, width, -1).mean(2)", {"image": i, "width": width}) for i in x])


@pytest.mark.parametrize("kind", [ByImage, Twice, ByWidth, Recursive, Indexed, Evaluated])
@pytest.mark.parametrize("images", [1, 3])
def test_a_cut_network_runs_on_any_number_of_images(kind, images):
    torch.manual_seed(0)
    model = kind()
    prove(model, torch.rand(images, 3, 8, 8))
    found = find_groups(model, torch.rand(images, 3, 8, 8))
    assert sum(g.size for g in found) == 40
    plan = plan_for(found, half_of(found, 0, list(found)))
    cut, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(cut, plan)
    mask(masked, plan)
    for number in (1, 2, 5):
        difference = compare(masked, cut, torch.rand(number, 3, 8, 8))
        assert not difference.problem and difference.relative < 1e-5, (number, difference)


def test_sites_are_numbered_in_a_loop_over_equal_blocks():
    """Blocks of one class share code, whether their own sizes are replaced or not; the code after them is unharmed."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b = nn.Linear(6, width), nn.Linear(width, 6)
            self.width = [width]

        def forward(self, x):
            return x + self.b(self.a(x).reshape(len(x), *self.width).reshape(len(x), -1, 1).flatten(1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.blocks, self.o = nn.Linear(4, 6), nn.ModuleList([Block(8), Block(8)]), nn.Linear(6, 3)

        def forward(self, x):
            x = self.i(x)
            for block in self.blocks:
                x = block(x)
            return self.o(x.reshape(len(x), 6, 1).flatten(1))

    torch.manual_seed(0)
    found = prove(Net(), torch.rand(2, 4))
    assert {g.size for g in found} == {8, 6}


class Heads(nn.Module):
    """Attention in a loop over layers, whose code takes other widths of heads from the width of the input."""

    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Linear(8, 24), nn.Linear(24, 5)
        self.qkv = nn.ModuleList(nn.Linear(24, 72) for _ in range(2))
        self.p = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.heads = [4, 6]

    def forward(self, x):
        x = self.e(x)
        for qkv, p, heads in zip(self.qkv, self.p, self.heads, strict=True):
            b, n, c = x.shape
            q, k, v = qkv(x).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
            x = x + p(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))
        return self.o(x)


def test_constants_of_one_site_that_differ_stay_apart():
    torch.manual_seed(0)
    assert sorted(g.size for g in prove(Heads(), torch.rand(2, 6, 8))) == [4, 6, 24]


def test_a_cut_network_lets_go_of_its_inputs():
    """Without waiting for Python's garbage collector."""
    torch.manual_seed(0)
    model, x = ByImage().eval(), torch.rand(2, 3, 8, 8)
    found = find_groups(model, x)
    apply(model, plan_for(found, half_of(found, 0, list(found))))
    gc.disable()
    try:
        x = torch.rand(2, 3, 8, 8)
        held = weakref.ref(x)
        model(x)
        del x
        assert held() is None
    finally:
        gc.enable()
