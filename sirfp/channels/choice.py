"""Chooses the channels that a trial removes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from ..structure.groups import ChannelGroups, Group

MOST = 3 / 8
"""Largest share of a group that uneven choices remove, but for a few atoms more of groups of equal size."""
GOLDEN = (5**0.5 - 1) / 2
"""Multiples of the golden ratio, without their integers, are spread evenly, and successive ones are far apart."""
APART = 3
"""Number of the first choice that cuts some of the small groups and leaves all others whole, see `turns_apart`."""
SMALL = 5
"""Number of atoms of the largest groups that lose one or two at a choice. Wherever all are cut, many of them lose the
same number."""
PAIR, ALIKE = 2, 3
"""Of `ALIKE` successive groups of `PAIR` atoms and one role each loses one without the others, see `turns_apart`."""


def some_of(found: ChannelGroups, groups: list[Group], turn: int, *, uneven: bool = False) -> np.ndarray:
    """Chooses the atoms to keep, (atoms,) of bool: removes some of each group in `groups`.

    Args:
        found: all groups.
        groups: those that lose atoms.
        turn: the number of the choice. From `APART` on only some of the small groups lose atoms.
        uneven: True to remove larger shares of larger groups at odd turns, and of smaller groups at even turns but 0.
            Otherwise a quotient of two widths, as in `channels // heads`, is mostly that of the dense network.
    """
    if turn >= APART:
        groups = _apart(found, groups, turn - APART)
    sizes = sorted({group.size for group in groups})
    keep = np.ones(found.atoms, dtype=bool)
    alike: dict[int, int] = {}
    for order, group in enumerate(groups):
        most = _most(group.size)
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


def repeats(found: ChannelGroups) -> bool:
    """True if some groups of equal size lose the same number of atoms at choice 0 and different ones at choice 1."""
    counts = Counter(group.size for group in found.groups)
    return any(number > _most(size) > 1 for size, number in counts.items())


def _most(size: int) -> int:
    """The largest number of atoms that a group of a size loses."""
    return max(1, size // 2, min(2, size - 1))


def _coprime(number: int) -> int:
    """The least integer of at least 0.38 times a number that has no divisor in common with it."""
    return next(n for n in range(math.ceil((1 - GOLDEN) * number), number + 1) if math.gcd(n, number) == 1)


def turns_apart(found: ChannelGroups) -> range:
    """The numbers of the choices in which some small groups (`SMALL`) lose atoms and others none.

    For each two groups of different roles there is a choice in which the first loses atoms and the second none, and one
    for the reverse; and for each two of `ALIKE` successive groups of one role and `PAIR` atoms, which all lose one at
    the other choices. Code that wants two such groups to have one width, as a reshape of attention's output to the
    width of its input, thus fails in one of them.
    """
    return range(APART, APART + 2 * max(0, len(set(_kinds(found).values())) - 1).bit_length())


def _apart(found: ChannelGroups, groups: Iterable[Group], number: int) -> list[Group]:
    """The small groups that lose atoms at a choice of `turns_apart`, counted from 0."""
    kinds = _kinds(found)
    bit, side = divmod(number, 2)
    return [g for g in groups if g.name in kinds and kinds[g.name] >> bit & 1 == side]


def _kinds(found: ChannelGroups) -> dict[str, int]:
    """{small group: the number of its kind}. Groups of one role are of one kind, pairs of `ALIKE` kinds by turns."""
    counts: Counter[tuple] = Counter()
    numbers: dict[tuple, int] = {}
    kinds = {}
    for group in found.groups:
        if 1 < group.size <= SMALL:
            its = role(group)
            turn = counts[its] % ALIKE if group.size == PAIR else 0
            kinds[group.name] = numbers.setdefault((its, turn), len(numbers))
            counts[its] += 1
    return kinds


def role(group: Group) -> tuple:
    """Returns the role of a group in its block: the names, with numbers replaced, and dimensions of its tensors."""
    return tuple(dict.fromkeys((re.sub(r"\d+", "#", piece.tensor), piece.dim) for piece in group.slices))
