"""Sizes that stand in a model's own code, found by trying: cut a copy, run it, freeze what it cannot miss.

A copy may fail, and it may run and compute something else: a part of fixed size that took the wrong channels, a scale
that follows the width. So the copy is run twice, with the removed channels zero and with them cut, and must say the
same.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ..structure.groups import ChannelGroups, Frozen, Group
from .rehearsal import CutCopy

logger = logging.getLogger(__name__)

TURNS = 2  # with how many choices of widths it is tried, as one may suit a size in the code by chance
HALVINGS = 1  # how often groups of one role are halved once one of them has failed


def freeze_failing(model: nn.Module, inputs: Any, output: Any, found: ChannelGroups) -> ChannelGroups:
    """Freezes the groups that the model's own code does not let go.

    A copy is cut in all groups and run. Where that fails the groups are tried by halves, each half on top
    of what is known to go, so a group is frozen only if the copy fails with it and runs without it. Once a group
    is, those of the same role in other blocks are tried last and together, since they mostly fail alike.
    Groups over which a statistic runs come after the others, whose outputs can be held to the masked copy's.
    What is left is tried with another choice of widths.

    Args:
        model: the dense model.
        inputs: what it is called with.
        output: what it returned.
        found: its groups.

    Returns:
        The groups that can be cut, the others among the frozen ones with the error as the reason.
    """
    copies = CutCopy(model, inputs, output, found)
    bad: dict[str, str] = {}
    left = list(found.groups)
    for turn in range(TURNS):
        if left and (turn == 0 or copies.failure(left, turn)):
            bad |= _failing(copies, left, turn)
            left = [group for group in left if group.name not in bad]
    return freeze_groups(found, bad) if bad else found


def _failing(copies: CutCopy, groups: list[Group], turn: int) -> dict[str, str]:
    """The groups that copies cannot run without, each with the error."""
    good: list[Group] = []
    bad: dict[str, str] = {}
    doubtful: dict[tuple, list[Group]] = {}

    def grow(candidates: list[Group]) -> None:
        for group in candidates:
            if _role(group) in doubtful:
                doubtful[_role(group)].append(group)
        candidates = [group for group in candidates if _role(group) not in doubtful]
        if not candidates:
            return
        error = copies.failure([*good, *candidates], turn)
        if error is None:
            good.extend(candidates)
        elif len(candidates) == 1:
            bad[candidates[0].name] = error
            logger.info("%s stays whole: %s", candidates[0].name, error)
            doubtful[_role(candidates[0])] = []
        else:
            middle = len(candidates) // 2
            grow(candidates[:middle])
            grow(candidates[middle:])

    def try_alike(alike: list[Group], halvings: int) -> None:
        error = copies.failure([*good, *alike], turn)
        if error is None:
            good.extend(alike)
        elif len(alike) == 1 or not halvings:
            bad.update((group.name, error) for group in alike)
        else:
            middle = len(alike) // 2
            try_alike(alike[:middle], halvings - 1)
            try_alike(alike[middle:], halvings - 1)

    for inexact in (False, True):
        grow([group for group in groups if bool(group.inexact) == inexact])
        for alike in doubtful.values():
            if alike:
                try_alike(alike, HALVINGS)
        doubtful.clear()
    return bad


def _role(group: Group) -> tuple:
    """What a group is in its block: the names of its tensors without their numbers."""
    return tuple(dict.fromkeys((re.sub(r"\d+", "#", piece.tensor), piece.dim) for piece in group.slices))


def freeze_groups(found: ChannelGroups, bad: dict[str, str]) -> ChannelGroups:
    """The groups less some, which become frozen for a reason each."""
    spans, keep = found.spans, np.ones(found.atoms, dtype=bool)
    for name in bad:
        keep[spans[name]] = False
    place = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)
    return ChannelGroups(
        groups=tuple(g for g in found.groups if g.name not in bad),
        frozen=found.frozen + tuple(Frozen(g.name, g.size, bad[g.name]) for g in found.groups if g.name in bad),
        cost=found.cost.restricted_to(keep),
        sizes=found.sizes,
        emissions=tuple(replace(e, atoms=place[e.atoms]) for e in found.emissions),
        statistics=tuple(
            replace(s, atoms=tuple(None if a is None else place[a] for a in s.atoms)) for s in found.statistics
        ),
        widths={m: {f: place[a] for f, a in v.items()} for m, v in found.widths.items()},
        branches=found.branches,
    )
