"""Splits into a number of parts, whose places follow from the width: equal parts are cut alike, unequal ones stay."""

import pytest
import torch
from cut_proofs import prove
from torch import nn

from sirfp.channels import find_groups

X = torch.rand(1, 3, 6, 6)


class Turned(nn.Module):
    """Splits the channels of a layer into parts, and joins them in another order."""

    def __init__(self, width, split):
        super().__init__()
        self.first, self.second, self.split = nn.Conv2d(3, width, 1), nn.Conv2d(width, 8, 1), split
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        first, *others = self.split(self.first(x))
        return self.head(torch.relu(self.second(torch.cat([*others, first], 1))))


SPLITS = {
    "chunk": lambda x: x.chunk(3, 1),
    "chunk by name": lambda x: torch.chunk(input=x, chunks=3, dim=-3),
    "tensor_split": lambda x: x.tensor_split(3, 1),
    "tensor_split by names": lambda x: torch.tensor_split(x, sections=3, dim=1),
}


@pytest.mark.parametrize("how", SPLITS)
def test_unequal_parts_stay_whole(how):
    found = find_groups(Turned(16, SPLITS[how]).eval(), X)
    assert [group.name for group in found] == ["second"]
    assert {f.reason for f in found.frozen if f.name == "first"} == {f"{how.split()[0]} splits it into unequal parts"}


@pytest.mark.parametrize("how", [*SPLITS, "hsplit"])
def test_equal_parts_lose_the_same_channels(how):
    found = prove(Turned(12, SPLITS.get(how, lambda x: torch.hsplit(x, 3))), X)
    assert {group.name: group.size for group in found} == {"first": 4, "second": 8}
