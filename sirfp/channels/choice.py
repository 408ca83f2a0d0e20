"""Chooses the channels that a trial removes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from ..structure.groups import ChannelGroups, Group

MOST = 3 / 8
"""Largest share of a group that uneven choices remove, but for a few atoms more of groups of equal size."""


GOLDEN = (5**0.5 - 1) / 2
"""Multiples of the golden ratio, without their integers, are spread evenly, and successive ones are far apart."""
APART = 3
"""Number of the first choice that cuts some of the smallest groups and leaves the others whole, see `turns_apart`."""
PAIR = 2
"""Number of atoms of the smallest groups. They can only lose one, so all lose the same number wherever all are cut."""


def some_of(found: ChannelGroups, groups: list[Group], turn: int, *, uneven: bool = False) -> np.ndarray:
    """Chooses the atoms to keep, (atoms,) of bool: removes some of each group in `groups`.

    Args:
        found: all groups.
        groups: those that lose atoms.
        turn: the number of the choice. From `APART` on only some of the groups of two atoms lose one.
        uneven: True to remove larger shares of larger groups at odd turns, and of smaller groups at even turns but 0.
            Otherwise a quotient of two widths, as in `channels // heads`, is mostly that of the dense network.
    """
    if turn >= APART:
        groups = _apart(found, groups, turn - APART)
    sizes = sorted({group.size for group in groups})
    keep = np.ones(found.atoms, dtype=bool)
    alike: dict[int, int] = {}
    for order, group in enumerate(groups):
        most = max(1, group.size // 2, min(2, group.size - 1))
        first, step = group.size // (3 + 2 * turn), 1
        if turn and uneven:
            rank = sizes.index(group.size) / max(1, len(sizes) - 1)
            first = int(MOST * group.size * (rank if turn % 2 else 1 - rank))
        elif turn:
            # Groups of similar sizes lose different shares, so that code that assumes a quotient of widths fails.
            first = int(MOST * group.size * (sizes.index(group.size) * GOLDEN % 1))
            step = _coprime(most)
        # Groups of equal size lose different numbers of atoms, so that code that assumes equal widths fails. Those that
        # lose the same number at one turn lose different ones at the next.
        place = alike[group.size] = alike.get(group.size, -1) + 1
        gone = 1 + (first + 1 + place * step + turn * (place // most)) % most
        part = keep[found.spans[group.name]]
        part[np.random.default_rng((turn, order)).permutation(group.size)[:gone]] = False
        if not part.any():
            part[0] = True
    return keep


def _coprime(number: int) -> int:
    """The least integer of at least 0.38 times a number that has no divisor in common with it."""
    return next(n for n in range(math.ceil((1 - GOLDEN) * number), number + 1) if math.gcd(n, number) == 1)


def turns_apart(found: ChannelGroups) -> range:
    """The numbers of the choices in which groups of two atoms of different roles lose different numbers.

    For each two roles there is a choice in which the groups of the first lose an atom and those of the second none, and
    one for the reverse. Code that wants two such groups to have one width, as a reshape of attention's output to the
    width of its input, thus fails in one of them.
    """
    return range(APART, APART + 2 * max(0, len(_pair_roles(found)) - 1).bit_length())


def _apart(found: ChannelGroups, groups: Iterable[Group], number: int) -> list[Group]:
    """The groups of two atoms that lose one at a choice of `turns_apart`, counted from 0."""
    roles = _pair_roles(found)
    bit, side = divmod(number, 2)
    return [g for g in groups if g.size == PAIR and roles.index(role(g)) >> bit & 1 == side]


def _pair_roles(found: ChannelGroups) -> list[tuple]:
    return list(dict.fromkeys(role(group) for group in found.groups if group.size == PAIR))


def role(group: Group) -> tuple:
    """Returns the role of a group in its block: the names, with numbers replaced, and dimensions of its tensors."""
    return tuple(dict.fromkeys((re.sub(r"\d+", "#", piece.tensor), piece.dim) for piece in group.slices))
