"""Norms and means that code writes by hand, with the width from a shape."""

from __future__ import annotations

import copy

import pytest
import torch
from cut_proofs import half_of, train
from torch import nn
from torch.nn import functional as F

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask


class Around(nn.Module):
    """A layer, an operation on its 16 channels, and two layers more."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.scale = operation, 4.0
        self.i, self.m, self.o = nn.Conv2d(2, 16, 1), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 3, 1)
        self.g = nn.Parameter(torch.rand(16, 1, 1) + 0.5)

    def forward(self, x):
        return self.o(self.m(self.operation(self, self.i(x))).relu())


BY_HAND = {
    "normalised": lambda net, x: F.normalize(x, dim=1) * net.g * x.shape[1] ** 0.5,
    "of an attribute": lambda net, x: F.normalize(x, dim=1) * net.g * net.scale,
    "divided by the norm": lambda net, x: net.g * x / (x.norm(dim=1, keepdim=True) * x.shape[1] ** -0.5).clamp(1e-6),
    "quotient of norm and root": lambda net, x: x / (x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5 + 1e-6) * net.g,
    "mean square": lambda net, x: x * torch.rsqrt(x.pow(2).sum(1, keepdim=True) / x.shape[1] + 1e-6) * net.g,
    "mean": lambda net, x: net.g * (x - x.sum(1, keepdim=True) / x.size(1)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_cut_network_takes_the_width_that_is_left(name):
    torch.manual_seed(0)
    dense, x = Around(BY_HAND[name]).eval(), torch.rand(1, 2, 5, 5)
    found = find_groups(dense, x)
    assert [group.name for group in found] == ["i", "m"] and found.groups[0].inexact
    plan = plan_for(found, half_of(found, 0, list(found)))
    cut, masked = copy.deepcopy(dense).double(), copy.deepcopy(dense).double()
    apply(cut, plan)
    mask(masked, plan)
    assert compare(masked, cut, x.double(), plan).relative < 1e-12
    train(cut.float(), x)


@pytest.mark.parametrize(
    "operation",
    [
        lambda net, x: x * x.shape[1] ** 0.5,
        lambda net, x: F.normalize(x, dim=1) * x.shape[1],
        lambda net, x: F.normalize(x, dim=1) * x.shape[1] ** 0.5 * x.shape[1] ** 0.5,
        lambda net, x: F.normalize(x, dim=2) * x.shape[1] ** 0.5,
    ],
    ids=["features", "another power", "twice", "over positions"],
)
def test_other_powers_of_a_width_keep_it(operation):
    torch.manual_seed(0)
    found = find_groups(Around(operation).eval(), torch.rand(1, 2, 5, 5))
    assert [group.name for group in found] == ["m"]
