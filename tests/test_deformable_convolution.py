"""Channels through torchvision's deformable convolutions, with groups, offset groups and modulation."""

from __future__ import annotations

import copy

import pytest
import torch
from test_channels import random_keep
from torch import nn
from torchvision.ops import DeformConv2d

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask

PIXELS = 12 * 12


class Deformable(nn.Module):
    """A convolution, a deformable one whose offsets the same features give, and a head."""

    def __init__(self, groups: int = 1, offset_groups: int = 1, modulated: bool = False, bias: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.offset = nn.Conv2d(16, 18 * offset_groups, 3, padding=1)
        self.modulation = nn.Conv2d(16, 9 * offset_groups, 3, padding=1) if modulated else None
        self.deformable = DeformConv2d(16, 24, 3, padding=1, groups=groups, bias=bias)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        counts = None if self.modulation is None else self.modulation(x).sigmoid()
        return self.head(self.deformable(x, self.offset(x), counts).relu())


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [24, 16]),
        ({"bias": True, "modulated": True}, [24, 16]),
        ({"offset_groups": 2}, [24, 8]),
        ({"groups": 4}, [6, 4]),
        ({"groups": 16, "bias": True}, None),
    ],
    ids=["plain", "modulated", "two offset groups", "four groups", "a group for each channel"],
)
def test_pruned_equals_masked(options, sizes):
    torch.manual_seed(0)
    options = {"bias": False, **options}
    model = Deformable(**options) if options.get("groups") != 16 else depthwise()
    x = torch.randn(1, 3, 12, 12)
    found = find_groups(model, x)
    if sizes is None:
        assert {f.reason for f in found.frozen} >= {"a deformable convolution reads it beside a fixed input"}
        return
    assert sorted((group.size for group in found), reverse=True) == sizes
    plan = plan_for(found, random_keep(found, 0))
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(pruned, plan)
    mask(masked, plan)
    found = compare(masked, pruned, x)
    assert not found.problem and found.relative < 1e-5
    assert pruned.deformable.weight.shape[0] < 24 and pruned.deformable.weight.shape[1] < 16


def depthwise() -> Deformable:
    model = Deformable()
    model.deformable = DeformConv2d(16, 16, 3, padding=1, groups=16)
    model.head = nn.Conv2d(16, 4, 1)
    return model


def test_it_counts_in_the_budget():
    model = Deformable()
    found = find_groups(model, torch.randn(1, 3, 12, 12))
    products = [3 * 9 * 16, 16 * 9 * 18, 16 * 9 * 24, 24 * 4]
    assert found.flops() == PIXELS * sum(products)
