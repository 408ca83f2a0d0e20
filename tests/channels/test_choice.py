"""Small groups lose different numbers of channels, so that code that wants two of them to be as wide fails a trial."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from sirfp.channels import find_groups
from sirfp.channels.choice import repeats, second_turns, some_of, turns_apart


class Branches(nn.Module):
    """Sums branches of equal widths, the first of which is scaled by the quotient of two widths.

    Args:
        names: a name for each branch.
        width: the number of channels of each, or a list of one for each.
        other: the number of the branch whose width counts.
    """

    def __init__(self, names: list[str], width: int | list[int], other: int):
        super().__init__()
        self.names, self.other = names, names[other]
        for name, its in zip(names, width if isinstance(width, list) else [width] * len(names), strict=True):
            self.add_module(name, nn.Conv2d(3, its, 1))
            self.add_module("read" + name, nn.Conv2d(its, 7, 1))

    def forward(self, x):
        inner = {name: getattr(self, name)(x) for name in self.names}
        first = inner[self.names[0]]
        inner[self.names[0]] = first * (inner[self.other].shape[1] / first.shape[1])
        return sum(getattr(self, "read" + name)(made) for name, made in inner.items()).mean((2, 3))


class Difference(Branches):
    """Scales the first branch by the difference of two widths."""

    def forward(self, x):
        first, other = getattr(self, self.names[0])(x), getattr(self, self.other)(x)
        first = first * (other.shape[1] - first.shape[1])
        return (getattr(self, "read" + self.names[0])(first) + getattr(self, "read" + self.other)(other)).mean((2, 3))


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


@pytest.mark.parametrize("names", [["b0", "b1"], ["a", "b"]], ids=["one role", "two roles"])
@pytest.mark.parametrize("widths", [(2, 5), (5, 2), (4, 5), (6, 7), (9, 3), (10, 11), (11, 12)], ids=str)
def test_groups_whose_difference_of_widths_must_stay(names, widths):
    torch.manual_seed(0)
    found = find_groups(Difference(names, list(widths), 1).eval(), torch.randn(2, 3, 5, 5))
    assert not found.groups, "a cut of either changes the difference"


@pytest.mark.parametrize("each", [1, 2, 3])
@pytest.mark.parametrize("roles", ["aa", "ab"])
def test_any_two_widths_are_told_apart(roles, each):
    for widths in itertools.combinations(range(1, 13) if each == 1 else (2, 3, 5, 6, 7, 12), 2):
        for order in (widths, widths[::-1]) if each == 1 else (widths,):
            names = [[f"{role}{side}{number}" for number in range(each)] for side, role in enumerate(roles)]
            found = groups([*names[0], *names[1]], [order[0]] * each + [order[1]] * each)
            numbers = [lost(found, turn) for turn in compared_turns(found)]
            for one, other in itertools.product(*names):
                assert any(its.get(one, 0) != its.get(other, 0) for its in numbers), (order, one, other)


def test_wide_groups_of_any_sizes_lose_different_numbers_at_the_first_choice():
    widths = [16, 24, 24, 32, 40, 40, 48, 64, 64, 64, 80, 96, 96, 112, 112, 160]
    found = groups([f"a{number}" for number in range(len(widths))], widths)
    assert len(set(lost(found, 0).values())) == len(widths) and not repeats(found)
    assert all(number <= width // 2 for number, width in zip(lost(found, 0).values(), widths, strict=True))


def test_more_roles_of_small_groups_take_few_more_trials():
    def turns(names):
        return len(turns_apart(groups(names, 4)))

    numbers = [turns(list("abcdefghijk"[:roles])) for roles in (1, 2, 3, 4, 6, 7, 10, 11)]
    assert turns(OF_ONE_ROLE) == 0 and numbers == [0, 2, 3, 4, 4, 5, 5, 6]


@pytest.mark.parametrize("roles", [2, 3, 5, 8])
def test_each_small_group_is_cut_without_each_other_one(roles):
    found = groups(list("abcdefgh"[:roles]), 4)
    cut = {turn: set(lost(found, turn)) for turn in second_turns(found)}
    for one, other in itertools.permutations(found.groups, 2):
        assert any(one.name in names and other.name not in names for names in cut.values())


@pytest.mark.parametrize("small", [2, 4])
@pytest.mark.parametrize("large", [6, 8, 9])
@pytest.mark.parametrize("roles", [2, 3, 4])
def test_no_small_group_loses_as_many_as_a_large_one_at_every_choice(small, large, roles):
    found = groups([*"abcd"[:roles], *"efghij"], [small] * roles + [large] * 6)
    numbers = [lost(found, turn) for turn in (0, *second_turns(found))]
    for one, other in itertools.product("abcd"[:roles], "efghij"):
        assert any(its.get(one, 0) != its.get(other, 0) for its in numbers), (one, other)


@pytest.mark.parametrize("count", [3, 4])
def test_groups_of_one_role_by_turns_with_another_lose_different_numbers(count):
    found = groups([f"{role}{number}" for number in range(count) for role in "ab"], 4)
    numbers = [lost(found, turn) for turn in (0, *second_turns(found))]
    for role in "ab":
        assert len({tuple(its.get(f"{role}{n}", 0) for its in numbers) for n in range(count)}) == count


def test_large_groups_are_cut_at_all_of_these_choices():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.small, self.large = Branches(list("abc"), 4, 0), Branches(["d", "e"], 24, 0)

        def forward(self, x):
            return self.small(x), self.large(x)

    found = find_groups(Both().eval(), torch.randn(1, 3, 4, 4), trial=False)
    large = {"large.d", "large.e"}
    assert all(large <= set(lost(found, turn)) for turn in second_turns(found))
    assert all(lost(found, 0)[name] != lost(found, second_turns(found)[0])[name] for name in large)


def test_groups_of_one_role_far_apart_lose_different_numbers():
    names = [*(f"a{number}" for number in range(8)), *"bcde"]
    found = groups(names, 4)
    numbers = {name: [lost(found, turn).get(name, 0) for turn in (0, *second_turns(found))] for name in names[:8]}
    assert len(set(map(tuple, numbers.values()))) == 8


def groups(names, width):
    return find_groups(Branches(names, width, 0).eval(), torch.randn(1, 3, 4, 4), trial=False)


def compared_turns(found):
    """The choices at which a trial compares values."""
    turns = [0, *second_turns(found)]
    return turns if len(turns) > 2 or repeats(found) else turns[:1]


def lost(found, turn):
    """{group: how many atoms it loses at a choice}, without those that lose none."""
    keep = some_of(found, list(found.groups), turn)
    numbers = {group.name: int((~keep[found.spans[group.name]]).sum()) for group in found}
    return {name: number for name, number in numbers.items() if number}
