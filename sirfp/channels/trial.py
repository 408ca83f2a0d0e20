"""Finds widths hard-coded in a model's forward: cuts a copy, runs it, and freezes the groups whose cut breaks it.

A cut copy may fail. It may also run and compute something else: a slice of fixed size takes the wrong channels, or a
scale depends on the width. Therefore a copy is run twice, first with the removed channels zeroed, then with them cut.
Both runs must compute the same.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import numpy as np

from ..structure.groups import ChannelGroups, Frozen, Group
from .choice import role, second_turns
from .rehearsal import TRAINING, CutCopy

logger = logging.getLogger(__name__)

HALVINGS = 1
"""How often the groups of one role are halved after one of them has failed. Groups of one role mostly fail together, so
more halvings would cost runs and save hardly any group. The groups of a part that still fails are frozen together."""

NAMED = 3
"""How often the groups that an error seems to name are left out before all are tried by halves. Groups lose different
numbers of channels, so an error that gives a width before and after a cut mostly tells which group it is of."""


def freeze_failing(copies: CutCopy, passed: Iterable[int] = (), *, trains: bool = False) -> ChannelGroups:
    """Freezes the groups whose cut breaks the model.

    All groups are cut in a copy, which is run. If it fails, the groups are tried by halves, each half together with the
    groups known to work. A group is thus frozen only if the copy fails with it and runs without it. The remaining
    groups are then tried with another choice of widths, and in training mode if the model runs other code in it. Small
    groups are also cut without each other (`sirfp.channels.choice.second_turns`). If a group fails at a later
    choice, the others are tried at the earlier ones again, now without it.

    Once a group has failed, groups of the same role in other blocks are tried last and together, because they mostly
    fail alike.

    Args:
        copies: cuts copies of the model and runs them.
        passed: numbers of the choices of widths that all groups have passed.
        trains: True if the model runs in training mode, by other code than in evaluation mode.

    Returns:
        The groups that can be cut. All others are frozen, with the error as the reason.
    """
    found = copies.found
    bad: dict[str, str] = {}
    left, passed = list(found.groups), set(passed)
    order = (0, *second_turns(found), TRAINING)
    while left and (todo := [turn for turn in order if turn not in passed]):
        turn = todo[0]
        if turn == TRAINING and not (trains or copies.trains):
            break
        passed.add(turn)
        if turn == 0 or copies.failure(left, turn):
            failed = failing(copies, left, turn)
            if failed:
                bad |= failed
                left = [group for group in left if group.name not in bad]
                passed = {turn}
    return freeze_groups(found, bad) if bad else found


class Copies(Protocol):
    """Cuts copies of a model and runs them."""

    def failure(self, groups: list[Group], turn: int = 0) -> str | None:
        """Returns the reason why a copy with cut groups fails, or None."""

    def kept(self, groups: list[Group], turn: int) -> dict[str, int]:
        """Returns how many atoms of each group such a copy keeps, {group name: number}."""


def failing(copies: Copies, groups: list[Group], turn: int) -> dict[str, str]:
    """Returns the groups whose cut breaks a copy, {group name: error}."""
    search = _Search(copies, turn)
    search.try_all(groups)
    for alike in search.doubtful.values():
        if alike:
            search.try_alike(alike, HALVINGS)
    return search.bad


class _Search:
    """The search of `failing`. Functions that call each other would hold the copies until garbage is collected.

    Args:
        copies: cuts copies of the model and runs them.
        turn: number of the choice of widths.

    Attributes:
        bad: the groups that fail, {group name: error}.
        doubtful: the groups that are not tried yet, by role, because one of their role fails.
    """

    def __init__(self, copies: Copies, turn: int):
        self.copies, self.turn = copies, turn
        self.good: list[Group] = []
        self.bad: dict[str, str] = {}
        self.doubtful: dict[tuple, list[Group]] = {}

    def try_all(self, groups: list[Group]) -> None:
        """Tries all groups, then those that no error names, and last the others.

        Where errors name two groups of one role, all groups of this role are left out.
        """
        rest, first = groups, self.copies.failure(groups, self.turn)
        error, roles = first, Counter[tuple]()
        for _ in range(NAMED):
            named = self._named(error, rest) if error is not None else []
            roles.update(map(role, named))
            names = {group.name for group in named}
            left = [group for group in rest if group.name not in names and roles[role(group)] < 2]
            if not named or not left:
                break
            rest, error = left, self.copies.failure(left, self.turn)
        if error is None:
            self.good.extend(rest)
        passed = {group.name for group in self.good}
        self.try_halves([group for group in groups if group.name not in passed], first)

    def _named(self, error: str, groups: list[Group]) -> list[Group]:
        """Returns the groups whose number of channels an error names before and after the cut."""
        numbers = set(map(int, re.findall(r"\d+", error)))
        kept = self.copies.kept(groups, self.turn)
        return [
            group
            for group in groups
            if any({group.size * width, kept[group.name] * width} <= numbers for width in group.layer_widths)
        ]

    def try_halves(self, candidates: list[Group], error: str | None = None) -> None:
        """Tries groups and, if a copy fails, each half of them.

        Args:
            candidates: the groups.
            error: the error of a copy in which they are cut with the good ones, if it is known.
        """
        for group in candidates:
            if role(group) in self.doubtful:
                self.doubtful[role(group)].append(group)
        candidates = [group for group in candidates if role(group) not in self.doubtful]
        if not candidates:
            return
        if error is None:
            error = self.copies.failure([*self.good, *candidates], self.turn)
        if error is None:
            self.good.extend(candidates)
        elif len(candidates) == 1:
            self.bad[candidates[0].name] = error
            logger.info("%s stays whole: %s", candidates[0].name, error)
            self.doubtful[role(candidates[0])] = []
        else:
            middle = len(candidates) // 2
            self.try_halves(candidates[:middle])
            self.try_halves(candidates[middle:])

    def try_alike(self, alike: list[Group], halvings: int) -> None:
        error = self.copies.failure([*self.good, *alike], self.turn)
        if error is None:
            self.good.extend(alike)
        elif len(alike) == 1 or not halvings:
            self.bad.update((group.name, error) for group in alike)
        else:
            middle = len(alike) // 2
            self.try_alike(alike[:middle], halvings - 1)
            self.try_alike(alike[middle:], halvings - 1)


def freeze_groups(found: ChannelGroups, bad: dict[str, str]) -> ChannelGroups:
    """Freezes groups, {group name: reason}, and returns the remaining groups with new numbers for their atoms."""
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
        widths={m: {f: place[a] for f, a in v.items()} for m, v in found.widths.items()},
        positions={m: place[a] for m, a in found.positions.items()},
        branches=found.branches,
        calls=tuple(replace(c, atoms=tuple(None if a is None else place[a] for a in c.atoms)) for c in found.calls),
        heads=found.heads,
    )
