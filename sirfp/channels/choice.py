"""Chooses the channels that a trial removes."""

from __future__ import annotations

import numpy as np

from ..structure.groups import ChannelGroups, Group


def some_of(found: ChannelGroups, groups: list[Group], turn: int) -> np.ndarray:
    """Chooses the atoms to keep, (atoms,) of bool: removes some of each group in `groups`."""
    keep = np.ones(found.atoms, dtype=bool)
    alike: dict[int, int] = {}
    for order, group in enumerate(groups):
        # Groups of equal size lose different numbers of atoms, so that code that assumes equal widths fails.
        count = alike[group.size] = alike.get(group.size, group.size // (3 + 2 * turn)) + 1
        gone = 1 + count % max(1, group.size // 2)
        part = keep[found.spans[group.name]]
        part[np.random.default_rng((turn, order)).permutation(group.size)[:gone]] = False
        if not part.any():
            part[0] = True
    return keep
