"""Depthwise convolutions of which each input makes several outputs."""

from __future__ import annotations

import pytest
import torch
from cut_proofs import prove
from torch import nn
from torch.nn.utils import parametrizations


def network(*layers: nn.Module, width: int = 24) -> nn.Sequential:
    return nn.Sequential(
        *layers, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 10, 1), nn.ReLU(), nn.Conv2d(10, 2, 1)
    )


FIXED = {
    "plain": lambda: nn.Conv2d(3, 24, 3, groups=3),
    "without bias": lambda: nn.Conv2d(3, 24, 3, groups=3, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(3, 24, 3, groups=3),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 24, 3, groups=3, bias=False)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 24, 3, groups=3)),
}


@pytest.mark.parametrize("name", FIXED)
def test_the_same_outputs_of_each_input_go_where_the_inputs_are_those_of_an_image(name):
    torch.manual_seed(0)
    found = prove(network(FIXED[name]()), torch.rand(1, 3, 8, 8))
    assert [group.size for group in found] == [8, 10]


@pytest.mark.parametrize("groups, sizes", [(12, [4, 10]), (3, [4, 8, 10])])
def test_layers_after_it_follow(groups, sizes):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 12, 3, groups=3), nn.ReLU(), nn.Conv2d(12, 24, 3, groups=groups)
    assert [group.size for group in prove(network(*layers), torch.rand(1, 3, 8, 8))] == sizes


def test_inputs_of_a_layer_go_with_all_of_their_outputs():
    torch.manual_seed(0)
    found = prove(network(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 24, 3, groups=8)), torch.rand(1, 3, 8, 8))
    assert [group.size for group in found] == [8, 10]
