"""Chooses the channels that a trial removes."""

from __future__ import annotations

import numpy as np

from ..structure.groups import ChannelGroups, Group

MOST = 3 / 8
"""Largest share of a group that uneven choices remove, but for a few atoms more of groups of equal size."""


def some_of(found: ChannelGroups, groups: list[Group], turn: int, *, uneven: bool = False) -> np.ndarray:
    """Chooses the atoms to keep, (atoms,) of bool: removes some of each group in `groups`.

    Args:
        found: all groups.
        groups: those that lose atoms.
        turn: the number of the choice.
        uneven: True to remove larger shares of larger groups at odd turns, and of smaller groups at even turns but 0.
            Otherwise a quotient of two widths, as in `channels // heads`, is mostly that of the dense network.
    """
    sizes = sorted({group.size for group in groups})
    keep = np.ones(found.atoms, dtype=bool)
    alike: dict[int, int] = {}
    for order, group in enumerate(groups):
        # Groups of equal size lose different numbers of atoms, so that code that assumes equal widths fails.
        first = group.size // (3 + 2 * turn)
        if uneven and turn:
            rank = sizes.index(group.size) / max(1, len(sizes) - 1)
            first = int(MOST * group.size * (rank if turn % 2 else 1 - rank))
        count = alike[group.size] = alike.get(group.size, first) + 1
        gone = 1 + count % max(1, group.size // 2)
        part = keep[found.spans[group.name]]
        part[np.random.default_rng((turn, order)).permutation(group.size)[:gone]] = False
        if not part.any():
            part[0] = True
    return keep
