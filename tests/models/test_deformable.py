"""Deformable convolutions are traced and cut, and work if Detectron2 lacks its own operator."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sirfp.channels import find_groups
from sirfp.models.deformable import DeformableConv, ModulatedDeformableConv, provide_deformable
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask


class Deforming(nn.Module):
    def __init__(self, groups: int = 1, offset_groups: int = 1, modulated: bool = True):
        super().__init__()
        taps, kind = 9 * offset_groups, ModulatedDeformableConv if modulated else DeformableConv
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.look = nn.Conv2d(12, (3 if modulated else 2) * taps, 3, padding=1)
        self.conv = kind(12, 16, 3, padding=1, groups=groups, deformable_groups=offset_groups, norm=nn.BatchNorm2d(16))
        self.head = nn.Conv2d(16, 4, 1)
        self.split = [2 * taps, taps] if modulated else [2 * taps]

    def forward(self, x):
        x = self.stem(x).relu()
        offset, *factor = self.look(x).split(self.split, dim=1)
        return self.head(self.conv(x, offset, *(f.sigmoid() for f in factor)).relu())


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("groups, offset_groups", [(1, 1), (1, 2), (2, 1), (4, 2)])
def test_cut_equals_masked(groups, offset_groups, modulated):
    torch.manual_seed(0)
    model, x = Deforming(groups, offset_groups, modulated).eval(), torch.randn(2, 3, 12, 12)
    found = find_groups(model, x)
    assert {g.name for g in found} == {"stem", "conv"}
    keep = np.ones(found.atoms, dtype=bool)
    for group in found:
        keep[found.spans[group.name]][:2] = False
    plan = plan_for(found, keep)
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(pruned, plan)
    mask(masked, plan)
    assert pruned.conv.weight.shape[0] < 16 and pruned.conv.weight.shape[1] < 12 // groups
    assert compare(masked, pruned, x).relative < 1e-6
    pruned.train()(x).sum().backward()
    assert pruned.conv.weight.grad.abs().sum() > 0


def test_without_offsets_it_is_a_convolution():
    layer = DeformableConv(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(1, 4, 9, 9)
    expected = nn.functional.conv2d(x, layer.weight, stride=2, padding=1, groups=2)
    assert torch.allclose(layer(x, torch.zeros(1, 18, 5, 5)), expected, atol=1e-5)


def test_detectron2_builds_deformable_blocks_without_its_own_operators():
    provide_deformable()
    from detectron2.modeling.backbone.resnet import DeformBottleneckBlock

    block = DeformBottleneckBlock(8, 8, bottleneck_channels=4, deform_modulated=True)
    assert block(torch.randn(1, 8, 6, 6)).shape == (1, 8, 6, 6)
