"""Parts of parameters that the example inputs do not reach stay: other inputs may reach them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sirfp
from sirfp.channels import find_groups

LONGEST, WIDTH = 60, 16


class Tokens(nn.Module):
    """Adds the first rows of a table of positions; subclasses say how the code takes them."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, LONGEST, WIDTH))
        self.embed, self.norm = nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def rows(self, count):
        return self.positions[:, :count]

    def forward(self, x):
        x = self.embed(x)
        x = x + self.rows(x.shape[1])
        return self.head(x + self.mlp(self.norm(x)))


class Narrowed(Tokens):
    def rows(self, count):
        return self.positions.narrow(1, 0, count)


class OfBuffer(Tokens):
    def __init__(self):
        super().__init__()
        table = self.positions.detach()
        del self.positions
        self.register_buffer("positions", table)


class OfView(Tokens):
    def rows(self, count):
        return self.positions.squeeze(0)[:count]


@pytest.mark.parametrize("kind", [Tokens, Narrowed, OfBuffer, OfView])
def test_longer_inputs_find_their_positions_after_a_cut(kind):
    torch.manual_seed(0)
    dense = kind().eval()
    small = copy.deepcopy(dense)
    plan = sirfp.prune(small, torch.randn(1, 9, 6), "random", keep_params=0.4)
    kept = list(plan.kept["embed"])
    assert 0 < len(kept) < WIDTH
    assert torch.equal(small.positions, dense.positions[..., kept])  # all rows are there, in order
    assert small(torch.randn(1, LONGEST, 6)).shape == (1, LONGEST, 3)


def test_a_joint_weight_that_slices_read_in_full_can_be_cut():
    class Joint(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 3) / 2)
            self.last = nn.Linear(12, 4)

        def forward(self, x):
            return self.last((x @ self.weight[:12].T).relu() * (x @ self.weight[12:].T))

    assert [group.size for group in find_groups(Joint().eval(), torch.randn(2, 3))] == [12]
