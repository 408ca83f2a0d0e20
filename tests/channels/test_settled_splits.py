"""A trace in which no split can lose whole heads is left after its pass in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sirfp.channels import find_groups
from sirfp.structure.heads import HeadSearch

PASSES: list[bool] = []
"""Whether each pass ran in training mode."""


class Boxes(nn.Module):
    """Returns four numbers for each of three boxes, as a detector does, and a loss of them in training mode."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1)

    def forward(self, x):
        PASSES.append(self.training)
        found = self.last(self.first(x).relu())
        if self.training:
            return self.loss(found.view(len(x), 3, 4, -1))
        return found.view(len(x), 3, 4, -1)

    def loss(self, boxes):
        return boxes.abs().mean()


class OneSided(Boxes):
    """Splits boxes in training mode alone; then each number of a box is one that the code counts."""

    def forward(self, x):
        PASSES.append(self.training)
        found = self.last(self.first(x).relu())
        return self.loss(found.view(len(x), 3, 4, -1)) if self.training else found


class Attending(nn.Module):
    """Splits a width into heads that all remain free."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 24), nn.Linear(8, 6)

    def forward(self, x):
        q, k, v = self.first(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.last(mixed.transpose(1, 2).flatten(2))


NETWORKS = [(Boxes, (1, 3, 8, 8)), (OneSided, (1, 3, 8, 8)), (Attending, (2, 5, 6))]


def test_the_pass_in_training_mode_is_left_out():
    PASSES.clear()
    find_groups(Boxes().eval(), torch.randn(1, 3, 8, 8), trial=False)
    assert PASSES == [False, True, False]


@pytest.mark.parametrize(("network", "shape"), NETWORKS)
def test_the_groups_are_those_of_whole_traces(network, shape, monkeypatch):
    model, x = network().eval(), torch.randn(shape)
    found = find_groups(model, x)
    monkeypatch.setattr(HeadSearch, "settles", lambda self, trace: False)
    whole = find_groups(model, x)
    assert found.frozen == whole.frozen
    assert found.heads == whole.heads
    assert [(g.name, g.channels) for g in found] == [(g.name, g.channels) for g in whole]
    assert found.flops() == whole.flops()
