"""Channels that the model's code counts apart are groups of their own, so that no plan removes all of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.verify import compare, mask

WIDE, NARROW = 16, 3


class Products(nn.Module):
    """Multiplies parts of one layer by pairs and joins them: all parts are read and made by the same layers."""

    def __init__(self):
        super().__init__()
        self.sizes = (WIDE, WIDE, NARROW, NARROW)
        self.first = nn.Conv2d(3, sum(self.sizes), 3)
        self.last = nn.Conv2d(WIDE + NARROW, 4, 1)

    def parts(self, x):
        return x.split(self.sizes, 1)

    def forward(self, x):
        a, b, c, d = self.parts(self.first(x))
        return self.last(torch.cat([a * b, c * d], 1))


class Written(Products):
    def parts(self, x):
        return x.split([16, 16, 3, 3], dim=1)


class Narrowed(Products):
    def parts(self, x):
        return [x.narrow(1, 0, 16), x.narrow(1, 16, 16), x.narrow(1, 32, 3), x.narrow(1, 35, 3)]


class Sliced(Products):
    def parts(self, x):
        return [x[:, :16], x[:, 16:32], x[:, 32:35], x[:, 35:38]]


class Gated(nn.Module):
    """Attention whose scores are gated by those of a second, narrower pair of queries and keys in the same layer."""

    def __init__(self, heads=2, width=8, gate=2):
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        inner, small = heads * width, heads * gate
        self.split = (inner, inner, inner, small, small)
        self.embed, self.joint = nn.Linear(6, 24), nn.Linear(24, sum(self.split))
        self.out, self.head = nn.Linear(inner, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = self.embed(x)
        parts = [p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.joint(x).split(self.split, dim=-1)]
        q, k, v, r, s = parts
        scores = q @ k.transpose(-1, -2) * self.scale + (r @ s.transpose(-1, -2)).sigmoid().log()
        return self.head(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


def inputs(kind: type[nn.Module]) -> torch.Tensor:
    return torch.randn(2, 5, 6) if kind is Gated else torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("kind", [Products, Written, Narrowed, Sliced])
def test_parts_that_the_code_counts_apart_do_not_compete(kind):
    found = find_groups(kind().eval(), inputs(kind))
    assert sorted(group.size for group in found) == [NARROW, WIDE]


@pytest.mark.parametrize("kind", [Products, Written, Narrowed, Sliced, Gated])
def test_a_part_of_small_weights_keeps_a_channel(kind):
    torch.manual_seed(0)
    dense = kind().eval()
    layer = dense.joint if kind is Gated else dense.first
    with torch.no_grad():
        layer.weight[-2 * (4 if kind is Gated else NARROW) :] *= 1e-3  # a ranking removes these first
    pruned, masked, x = copy.deepcopy(dense), copy.deepcopy(dense), inputs(kind)
    plan = sirfp.prune(pruned, x, "magnitude", keep_flops=0.5, bias_correction=False)
    mask(masked, plan)
    assert plan.flops[1] <= 0.5 * plan.flops[0]
    assert compare(masked, pruned, x, plan).relative < 1e-5 < compare(dense, pruned, x).relative
    assert all(map(len, plan.kept.values()))


def test_parts_that_become_one_width_stay_one_group():
    class Whole(Products):
        def parts(self, x):
            return x.chunk(2, 1)

        def forward(self, x):
            a, b = self.parts(self.first(x))
            return self.last(a * b)

    found = find_groups(Whole().eval(), inputs(Whole))
    assert [group.size for group in found] == [WIDE + NARROW]
