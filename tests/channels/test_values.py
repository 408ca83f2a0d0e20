"""The trial compares values also where a statistic runs over channels: each is taken over the kept channels only."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import mask
from sirfp.verify.choices import Choices
from sirfp.verify.kept import KeptStatistics

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions with a statistic over channels and then something else between them."""

    def __init__(self, statistic, then):
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.attend, self.norm = nn.Conv2d(1, 1, 7, padding=3), nn.LayerNorm(16)
        self.few = nn.GroupNorm(2, 16)
        self.statistic, self.then = statistic, then

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.h(F.relu(self.b(self.then(self.statistic(self, x)))))


STATISTICS = {
    "max": lambda net, x: x * torch.sigmoid(net.attend(x.amax(1, keepdim=True))),
    "max of two results": lambda net, x: x * torch.sigmoid(net.attend(x.max(1, keepdim=True)[0])),
    "min": lambda net, x: x + (x + 1).amin(1, keepdim=True),
    "mean": lambda net, x: x - x.mean(1, keepdim=True),
    "mean over all": lambda net, x: x - x.mean((1, 2, 3), keepdim=True),
    "sum": lambda net, x: x / (1 + (x + 1).sum(1, keepdim=True)),
    "std": lambda net, x: x / (1 + x.std(1, keepdim=True)),
    "variance and mean": lambda net, x: x + torch.var_mean(x, 1, keepdim=True)[1],
    "logsumexp": lambda net, x: x - x.logsumexp(1, keepdim=True),
    "norm": lambda net, x: F.normalize(x + 1, dim=1),
    "product": lambda net, x: x + (x.sigmoid() + 0.5).prod(1, keepdim=True),
    "layer norm": lambda net, x: net.norm(x.movedim(1, -1)).movedim(-1, 1),
    "root mean square": lambda net, x: F.rms_norm(x.movedim(1, -1), [x.shape[1]], net.norm.weight).movedim(-1, 1),
    "group norm of few groups": lambda net, x: net.few(x),
    "any": lambda net, x: x * (x > 1).any(1, keepdim=True),
    "batch statistics": lambda net, x: F.batch_norm(x.movedim(1, -1), None, None, training=True).movedim(-1, 1),
}
SHARES = {
    "softmax": lambda net, x: x.softmax(1),
    "log softmax": lambda net, x: x.log_softmax(1),
}
aten = torch.ops.aten  # in calls of operators, sizes cannot be replaced
WRONG = {
    "shuffle": lambda x: aten.view(x.contiguous(), [len(x), -1, 4, *x.shape[2:]]).transpose(1, 2).reshape(x.shape),
    "parts": lambda x: torch.cat(aten.split(x, 8, 1)[::-1], 1),
    "width": lambda x: x / x.shape[1],
    "numpy": lambda x: x * (1 + float(x.numpy().std())),
}


def network(statistic, then) -> nn.Module:
    torch.manual_seed(0)
    net = Net(statistic, then).eval()
    for module in (net.norm, net.few):
        nn.init.normal_(module.weight)
        nn.init.normal_(module.bias)
    return net


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_right_cut_equals_the_masked_network_with_statistics_over_kept_channels(statistic):
    net = network(STATISTICS[statistic], lambda x: x)
    found = find_groups(net, X)
    group = found["a"]
    assert "b" in [g.name for g in found]
    keep = np.ones(found.atoms, dtype=bool)
    keep[found.spans["a"]][: group.size // 2] = False
    plan, cut, masked = plan_for(found, keep), copy.deepcopy(net), copy.deepcopy(net)
    apply(cut, plan)
    mask(masked, plan)
    with torch.no_grad():
        with KeptStatistics(masked, plan):
            wanted = masked(X)
        assert torch.allclose(cut(X), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("statistic", ["max", "mean", "std", "logsumexp", "layer norm", "batch statistics"])
def test_a_wrong_cut_is_found_behind_a_statistic(statistic, wrong):
    found = find_groups(network(STATISTICS[statistic], WRONG[wrong]), X)
    assert [g.name for g in found] == ["b"]
    assert "cut, the model" in {f.name: f.reason for f in found.frozen}["a"]


@pytest.mark.parametrize("shares", SHARES)
def test_channels_that_a_softmax_runs_over_stay(shares):
    found = find_groups(network(SHARES[shares], lambda x: x), X)
    assert [g.name for g in found] == ["b"]
    assert "classes or bins" in {f.name: f.reason for f in found.frozen}["a"]


class Distribution(nn.Module):
    """Sides of boxes as means over bins, as in YOLO: bins keep their meaning, so none is removed."""

    def __init__(self, bins: int = 4):
        super().__init__()
        self.bins = bins
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4 * bins, 1)

    def forward(self, x):
        sides = self.b(F.relu(self.a(x))).flatten(2)
        shares = sides.view(len(x), 4, self.bins, -1).transpose(1, 2).softmax(1)
        return (shares * torch.arange(self.bins).view(-1, 1, 1)).sum(1)


class ChannelAttention(nn.Module):
    """Attention of channels to channels: the softmax runs over features, which may go."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        weights = (self.q(x).transpose(1, 2) @ self.k(x)).softmax(-1)
        return self.out((weights @ self.v(x).transpose(1, 2)).transpose(1, 2))


def test_bins_of_a_distribution_stay_and_channels_that_attend_to_channels_may_go():
    found = find_groups(Distribution().eval(), X)
    assert [g.name for g in found] == ["a"]
    assert [g.name for g in find_groups(ChannelAttention().eval(), torch.rand(2, 6, 8))] == ["q", "k"]


def test_a_mode_that_records_the_pass_sees_the_operations_of_the_model_alone():
    net = network(STATISTICS["mean"], lambda x: x)
    net = nn.Sequential(net.a, nn.BatchNorm2d(16), nn.ReLU(), net.b).eval()
    nn.init.uniform_(net[1].weight)
    plan = plan_for(find_groups(net, X), np.ones(find_groups(net, X).atoms, dtype=bool))
    records = []
    for kept in (nullcontext(), KeptStatistics(net, plan, clean=True)):
        with torch.no_grad(), Choices() as choices, kept:
            net(X)
        records.append((len(choices.made), choices.statistics))
    assert records[0] == records[1]
