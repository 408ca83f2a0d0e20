"""Small groups lose different numbers of channels, so that code that wants two of them to be as wide fails a trial."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sirfp.channels import find_groups
from sirfp.channels.choice import turns_apart


class Branches(nn.Module):
    """Sums branches of equal widths, the first of which is scaled by the quotient of two widths.

    Args:
        names: a name for each branch.
        width: the number of channels of each.
        other: the number of the branch whose width counts.
    """

    def __init__(self, names: list[str], width: int, other: int):
        super().__init__()
        self.names, self.other = names, names[other]
        for name in names:
            self.add_module(name, nn.Conv2d(3, width, 1))
            self.add_module("read" + name, nn.Conv2d(width, 7, 1))

    def forward(self, x):
        inner = {name: getattr(self, name)(x) for name in self.names}
        first = inner[self.names[0]]
        inner[self.names[0]] = first * (inner[self.other].shape[1] / first.shape[1])
        return sum(getattr(self, "read" + name)(made) for name, made in inner.items()).mean((2, 3))


OF_ONE_ROLE, OF_ROLES = [f"b{number}" for number in range(5)], list("abcde")


@pytest.mark.parametrize(
    ("names", "width", "other"),
    [(OF_ONE_ROLE, 2, 2), (OF_ROLES, 3, 2), (OF_ROLES, 5, 4), (OF_ONE_ROLE, 8, 4)],
)
def test_groups_that_must_be_as_wide_stay(names, width, other):
    torch.manual_seed(0)
    found = find_groups(Branches(names, width, other).eval(), torch.randn(2, 3, 5, 5))
    assert names[0] not in {group.name for group in found} or names[other] not in {group.name for group in found}
    assert {group.name for group in found}  # the other branches may be cut


def test_more_roles_of_small_groups_take_few_more_trials():
    def turns(names):
        return len(turns_apart(find_groups(Branches(names, 4, 0).eval(), torch.randn(1, 3, 4, 4))))

    assert (turns(OF_ONE_ROLE), turns(OF_ROLES[:2]), turns(OF_ROLES)) == (0, 2, 6)
