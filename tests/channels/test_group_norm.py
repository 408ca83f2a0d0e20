"""Group norms lose whole groups, so that the statistics of the others do not change."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask


def network(channels: int, groups: int) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Conv2d(3, channels, 3), norm, nn.ReLU(), nn.Conv2d(channels, 2, 1)).eval()


def prune(model: nn.Module, gone: int):
    x = torch.randn(2, 3, 8, 8)
    found = find_groups(model, x)
    keep = np.ones(found.atoms, dtype=bool)
    keep[:gone] = False
    plan = plan_for(found, keep)
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(pruned, plan)
    mask(masked, plan)
    return found, plan, pruned, compare(masked, pruned, x)


def test_whole_groups_go_and_their_number_follows():
    found, _, pruned, difference = prune(network(24, 8), gone=3)
    assert found.atoms == 8 and not found.groups[0].inexact
    assert pruned[1].num_groups == 5 and pruned[1].num_channels == 15
    assert difference.relative < 1e-6


def test_few_groups_lose_channels_index_by_index():
    found, _, pruned, _ = prune(network(24, 2), gone=3)
    assert found.atoms == 12 and "group norm" in found.groups[0].inexact
    assert pruned[1].num_groups == 2 and pruned[1].num_channels == 18


@pytest.mark.parametrize("channels, groups", [(12, 12), (9, 1)])
def test_groups_of_one_channel_and_one_group(channels, groups):
    found, _, pruned, difference = prune(network(channels, groups), gone=2)
    assert found.atoms == channels
    assert pruned[1].num_groups == (groups - 2 if groups > 1 else 1)
    assert groups == 1 or difference.relative < 1e-6


class Hidden(nn.Module):
    """Stores the number of groups in an attribute that a cut does not change."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 2, 1)
        self.scale, self.shift = nn.Parameter(torch.randn(32)), nn.Parameter(torch.randn(32))

    def forward(self, x):
        return self.head(nn.functional.group_norm(self.a(x), 8, self.scale, self.shift).relu())


def test_a_number_of_groups_in_the_code_stays():
    found, _, pruned, _ = prune(Hidden().eval(), gone=1)
    assert found.atoms == 4  # one channel of each of the eight groups
    assert pruned.a.weight.shape[0] == 24


def test_two_cuts_in_a_row_equal_their_sum():
    model, x = network(64, 16), torch.randn(1, 3, 8, 8)
    once, plans = copy.deepcopy(model), []
    for gone in (10, 3):  # the second meets six groups, too few, and takes channels from all of them
        found = find_groups(once, x)
        keep = np.ones(found.atoms, dtype=bool)
        keep[:gone] = False
        plans.append(plan_for(found, keep))
        apply(once, plans[-1])
    assert once[1].num_groups == 6 and once[1].num_channels == 6
    fresh = copy.deepcopy(model)
    apply(fresh, plans[0].then(plans[1]))
    assert fresh[1].num_groups == 6
    assert compare(once, fresh, x).relative == 0
