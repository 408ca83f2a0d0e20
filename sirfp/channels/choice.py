"""Chooses the channels that a trial removes."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ..structure.groups import ChannelGroups, Group

MOST = 3 / 8
"""Largest share of a group that uneven choices remove, but for a few atoms more of groups of equal size."""
GOLDEN = (5**0.5 - 1) / 2
"""Multiples of the golden ratio, without their integers, are spread evenly, and successive ones are far apart."""
APART = 3
"""Number of the first choice that cuts only some of the small groups, see `turns_apart`."""
SMALL = 5
"""Number of atoms of the largest groups that lose one or two at a choice. Wherever all are cut, many of them lose the
same number."""
FEW = 12
"""Number of atoms of the largest groups that lose more than half of them where others have taken the lower numbers."""
PAIR, ALIKE = 2, 3
"""Of `ALIKE` successive groups of `PAIR` atoms and one role each loses one without the others, see `turns_apart`."""


def some_of(found: ChannelGroups, groups: list[Group], turn: int, *, uneven: bool = False) -> np.ndarray:
    """Chooses the atoms to keep, (atoms,) of bool: removes some of each group in `groups`.

    Args:
        found: all groups.
        groups: those that lose atoms.
        turn: the number of the choice. From `APART` on, some of the small groups and all larger ones lose atoms.
        uneven: True to remove larger shares of larger groups at odd turns, and of smaller groups at even turns but 0.
            Otherwise a quotient of two widths, as in `channels // heads`, is mostly that of the dense network.
    """
    gone = _numbers(groups, _kinds(found), turn, uneven=uneven)
    keep = np.ones(found.atoms, dtype=bool)
    for order, group in enumerate(groups):
        part = keep[found.spans[group.name]]
        part[np.random.default_rng((turn, order)).permutation(group.size)[: gone.get(group.name, 0)]] = False
    return keep


def numbers_kept(found: ChannelGroups, groups: list[Group], turn: int, *, uneven: bool = False) -> dict[str, int]:
    """Returns how many atoms of each group `some_of` keeps at a choice, {group name: number}."""
    gone = _numbers(groups, _kinds(found), turn, uneven=uneven)
    return {group.name: group.size - gone.get(group.name, 0) for group in groups}


def repeats(found: ChannelGroups) -> bool:
    """True if some groups lose the same number of atoms at choice 0. At choice 1 they lose different ones."""
    numbers = _numbers(list(found.groups), _kinds(found), 0)
    return len(set(numbers.values())) < len(numbers)


def _numbers(groups: list[Group], kinds: Mapping[str, int], turn: int, *, uneven: bool = False) -> dict[str, int]:
    """The numbers of atoms that groups lose at a choice, {name: number}; groups that lose none are left out.

    Groups lose different numbers, so that code that assumes equal widths, or a fixed difference of widths, fails. Where
    there are too few numbers, those that lose the same one at the earlier choices too lose different ones. Groups of
    the smallest sizes choose first, since they have the fewest numbers. Groups of different kinds do not count: some
    choice cuts one without the other anyway.

    Args:
        groups: the groups.
        kinds: the kinds of the small groups (`_kinds`).
        turn: the number of the choice.
        uneven: see `some_of`.
    """
    sizes = sorted({group.size for group in groups})
    apart = _apart(kinds)
    lost: dict[str, tuple[int, ...]] = {group.name: () for group in groups}
    for number in [*(n for n in (0, *(apart or [1])) if n < turn), turn]:
        turns, taken = _turns_of(groups, kinds, number), Counter[tuple]()
        for group in sorted(groups, key=lambda group: group.size):
            known, gone = lost[group.name], 0
            if group.name in turns and group.size > 1:
                kind = kinds.get(group.name) if apart else None
                rivals = (kind, known, None), (kind, None, group.size)  # by earlier numbers, then by size
                numbers = _preferred(group.size, sizes, turns[group.name], uneven=uneven)
                gone = _least_taken(numbers, taken, rivals)
                taken.update((each, gone) for each in rivals)
            lost[group.name] = (*known, gone)
    return {name: known[-1] for name, known in lost.items() if known[-1]}


def _least_taken(numbers: Iterable[int], taken: Mapping[tuple, int], rivals: tuple[tuple, ...]) -> int:
    """The first of some numbers that no rival has, or else the first of those that the fewest have.

    Args:
        numbers: the numbers, the best first.
        taken: how many groups have each number, {(rivals, number): count}.
        rivals: names of sets of groups, the most important first.
    """
    counts = {}
    for number in numbers:
        counts[number] = [taken[each, number] for each in rivals]
        if not any(counts[number]):
            return number
    return min(counts, key=lambda number: counts[number])


def _preferred(size: int, sizes: Sequence[int], turn: int, *, uneven: bool) -> Iterator[int]:
    """The numbers of atoms that a group of a size may lose at a choice, the best first.

    Args:
        size: the group's size.
        sizes: the sizes of all groups, in ascending order.
        turn: the number of the choice.
        uneven: see `some_of`.
    """
    most = _most(size)
    first, step = size // (3 + 2 * turn), 1
    if turn and uneven:
        rank = sizes.index(size) / max(1, len(sizes) - 1)
        first = int(MOST * size * (rank if turn % 2 else 1 - rank))
    elif turn:
        # Groups of similar sizes lose different shares, so that code that assumes a quotient of widths fails.
        first = int(MOST * size * (sizes.index(size) * GOLDEN % 1))
        step = _coprime(most)
    usual = (1 + (first + 1 + place * step) % most for place in range(most))
    return itertools.chain(usual, range(most + 1, size if size <= FEW else 0))


def _most(size: int) -> int:
    """The largest number of atoms that a group of a size loses."""
    return max(1, size // 2, min(2, size - 1))


def _coprime(number: int) -> int:
    """The least integer of at least 0.38 times a number that has no divisor in common with it."""
    return next(n for n in range(math.ceil((1 - GOLDEN) * number), number + 1) if math.gcd(n, number) == 1)


def second_turns(found: ChannelGroups) -> range:
    """The numbers of the choices that follow choice 0: those of `turns_apart`, or else choice 1.

    Each of them cuts all groups that are not small, by other numbers than choice 0.
    """
    return turns_apart(found) or range(1, 2)


def turns_apart(found: ChannelGroups) -> range:
    """The numbers of the choices in which some small groups (`SMALL`) lose atoms and others none.

    For each two groups of different roles there is a choice in which the first loses atoms and the second none, and one
    for the reverse; and for each two of `ALIKE` successive groups of one role and `PAIR` atoms, which all lose one at
    the other choices. Code that wants two such groups to have one width, as a reshape of attention's output to the
    width of its input, thus fails in one of them. Each role loses atoms in half of the choices, and no two in the same
    ones, so few choices suffice (Sperner, Ein Satz über Untermengen einer endlichen Menge, 1928). Groups that are not
    small lose atoms at all of them, and thus also where any small group loses none.
    """
    return _apart(_kinds(found))


def _apart(kinds: Mapping[str, int]) -> range:
    """The numbers of the choices of `turns_apart`, for the kinds of the small groups (`_kinds`)."""
    count = len(set(kinds.values()))
    number = 0 if count < 2 else next(n for n in itertools.count(2) if math.comb(n, n // 2) >= count)
    return range(APART, APART + number)


def _turns_of(groups: list[Group], kinds: Mapping[str, int], turn: int) -> dict[str, int]:
    """The groups that lose atoms at a choice, {name: the number of the choice that says how many}."""
    if turn < APART:
        return {group.name: turn for group in groups}
    apart = _apart(kinds)
    halves = list(itertools.combinations(apart, len(apart) // 2))
    turns = {}
    for group in groups:
        its = halves[kinds[group.name]] if group.name in kinds else apart
        if turn in its:
            turns[group.name] = 1 + its.index(turn)
    return turns


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
