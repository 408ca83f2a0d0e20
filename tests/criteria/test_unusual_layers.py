"""Every criterion prunes networks whose weights are made by other layers, or hold the channels of two groups."""

from __future__ import annotations

import functools

import pytest
import torch
from small_networks import mean_square
from torch import nn
from torch.nn import functional as F

import sirfp
from sirfp.channels import find_groups
from sirfp.criteria import CRITERIA, build_criterion


class MadeWeights(nn.Module):
    """A convolution whose kernel layers make from one vector."""

    def __init__(self):
        super().__init__()
        self.vector = nn.Parameter(torch.randn(8))
        self.make = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 20 * 16))
        self.a, self.norm, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(20), nn.Conv2d(20, 4, 1)

    def forward(self, x):
        kernel = self.make(self.vector).view(20, 16, 1, 1)
        return self.o(self.norm(F.conv2d(self.a(x).relu(), kernel)).relu())


class Heads(nn.Module):
    """Attention by products, whose weights hold the embedding and the widths of heads."""

    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Linear(3, 24), nn.Linear(24, 4)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(24, 4, 8) / 5) for _ in range(3))
        self.p = nn.Parameter(torch.randn(4, 8, 24) / 5)

    def forward(self, x):
        x = self.i(x.flatten(2).mT)
        q, k, v = (torch.einsum("bld,dhk->bhlk", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("bhlk,bhmk->bhlm", q, k) / 8**0.5
        return self.o(x + torch.einsum("bhlk,hkd->bld", scores.softmax(-1) @ v, self.p))


class Gated(nn.Linear):
    """Returns half as many channels as its weight makes."""

    def forward(self, x):
        value, gate = super().forward(x).chunk(2, -1)
        return value * gate.sigmoid()


class Steps(nn.Module):
    """A gated layer, a cell of a recurrent layer, and a linear layer that a norm follows."""

    def __init__(self):
        super().__init__()
        self.i, self.gated, self.cell = nn.Linear(3, 16), Gated(16, 24), nn.GRUCell(12, 20)
        self.m, self.norm, self.o = nn.Linear(20, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x):
        state = None
        for step in self.gated(self.i(x.flatten(2).mT).relu()).unbind(1):
            state = self.cell(step, state)
        return self.o(self.norm(self.m(state)).relu())


SHAPE = (3, 4, 4)


@functools.cache
def groups_of(network):
    """The groups of a network, which no criterion changes."""
    torch.manual_seed(0)
    return find_groups(network(), torch.randn(2, *SHAPE))


@pytest.mark.parametrize("network", [MadeWeights, Heads, Steps])
@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_prunes_it(network, name, known_groups):
    torch.manual_seed(0)
    model = network()
    known_groups(groups_of(network), model)
    batches = [torch.randn(2, *SHAPE) for _ in range(2)]
    plan = sirfp.prune(model, batches[0], name, 0.6, batches, loss=mean_square, reconstruction=0)
    assert 0.3 < plan.flops[1] / plan.flops[0] <= 0.6
    assert model(batches[0]).isfinite().all()


def test_gates_on_two_dimensions_of_a_tensor_are_apart():
    torch.manual_seed(0)
    model = Heads()
    found = find_groups(model, torch.randn(2, 3, 4, 4))
    sizes = {group.name: group.size for group in found}
    assert sorted(sizes.values()) == [8, 8, 24]
    criterion = build_criterion("dcfp", model, found.groups, ema=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
        model.q.grad[3] = 1.0  # of one channel of the embedding: 4 x 8 weights
        model.q.grad[:, :, 5] += 2.0  # of one channel of all heads: 24 x 4 weights
    criterion.step()
    scores = criterion.scores()
    embedding, width = (next(n for n, size in sizes.items() if size == wanted and n != "v") for wanted in (24, 8))
    assert scores[embedding].argmax() == 3 and scores[width].argmax() == 5
    expected = torch.full((8,), 4.0)
    expected[5] += 24 * 4 * 2.0
    assert torch.equal(scores[width] / scores[width][0] * 4, expected)
