"""Exchanges of widths between groups: the problem of choosing widths, and steps from one choice to a better one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from .width_cost import WidthCost

ROUNDS = 60
"""Maximum number of rounds of exchanges from one start. It bounds the time."""
NEAR = 10
"""Number of widths on each side of the present one, in steps of the grid, that exchanges try. Others are tried at
growing distances."""
CHECKED = 100
"""Maximum number of exchanges of one round whose cost is computed, best first. Rounds choose by an estimate, the sum of
the two groups' changes, which is exact unless they meet in a layer."""
TURNS, PAIRED = 20, 800
"""Number of exchanges that are tried to come closer to the budget, and from which a second exchange is tried; and the
number of changes that are paired to find them."""
DEARER = 0.01
"""Largest rise of the loss, as a share of it, for using more of the budget. A plan that costs less and loses less is
better in both respects, so more is not paid."""


@dataclass(frozen=True)
class Knapsack:
    """A problem: possible widths and their losses for each group, a cost and a budget.

    Attributes:
        grids: the possible widths of each group, ascending, [(M,) of int].
        losses: the loss at each of these widths, never rising, [(M,)].
        cost: the cost of all groups' widths.
        budget: the maximum cost; the smallest widths must be within it.
        exact, enough: the search for a closer cost aims at `exact` below the budget and ends if it is `enough` below,
            as shares of the budget.
    """

    grids: list[np.ndarray]
    losses: list[np.ndarray]
    cost: WidthCost
    budget: float
    exact: float
    enough: float
    exchanged: dict[bytes, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What exchanges have led to, by the positions that they came from; see `exchanged`."""

    def loss(self, at: np.ndarray) -> float:
        """Returns the sum of losses if each group takes the width at a position in its grid, (groups,) of int."""
        return float(sum(self._lined_up[1][self._starts + at]))

    def widths(self, at: np.ndarray) -> np.ndarray:
        """Returns the widths at positions in the grids, (groups,)."""
        return self._lined_up[0][self._starts + at]

    @cached_property
    def _lined_up(self) -> tuple[np.ndarray, np.ndarray]:
        """The widths and the losses of all groups, one group behind the other, as floats, (all widths,) each."""
        return np.concatenate(self.grids).astype(float), np.concatenate(self.losses).astype(float)

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where each group's first width is among those of all groups, (groups,) of int."""
        return np.cumsum([0, *(len(grid) for grid in self.grids[:-1])])

    def along(self, at: np.ndarray, group: int) -> np.ndarray:
        """Returns how the cost changes at each width of one group's grid, (M,), if the others are as in `at`."""
        grid = self.grids[group]
        return self.cost.along(self.cost.sizes(self.widths(at)), group, grid - grid[at[group]])

    def fits(self, at: np.ndarray) -> bool:
        """True if the widths at positions in the grids are within the budget."""
        return self.cost(self.widths(at)) <= self.budget


def exchanged(problem: Knapsack, at: np.ndarray) -> np.ndarray:
    """Widens one group, and if it does not fit narrows another one, while that lowers the loss.

    Exchanges from many starts pass through the same choices. From one that is known they are not made again.
    """
    at, passed = at.copy(), []
    for _ in range(ROUNDS):
        key = at.astype(np.int64).tobytes()
        if key in problem.exchanged:
            at = problem.exchanged[key].copy()
            break
        passed.append(key)
        done: set[int] = set()
        loss = problem.loss(at)
        for changes in _gains(problem, at):
            if done.isdisjoint(changes):
                trial = at.copy()
                for g, position in changes.items():
                    trial[g] = position
                if problem.fits(trial):
                    at = trial
                    done.update(changes)
        if not problem.loss(at) < loss * (1 - 1e-9):
            break
    problem.exchanged.update(dict.fromkeys(passed, at.copy()))
    return at


@dataclass(frozen=True)
class _Moves:
    """Changes of one group's width: the group, its new position, and the changes of cost and of loss, (N,) each."""

    group: np.ndarray
    position: np.ndarray
    cost: np.ndarray
    loss: np.ndarray

    @staticmethod
    def around(problem: Knapsack, at: np.ndarray) -> tuple[_Moves, _Moves]:
        """Returns the moves to larger and those to smaller widths, in the order of groups and then of cost."""
        sizes, parts = problem.cost.sizes(problem.widths(at)), []
        for g, (grid, losses) in enumerate(zip(problem.grids, problem.losses, strict=True)):
            tried = _near(int(at[g]), len(grid))
            cost = problem.cost.along(sizes, g, grid[tried] - grid[at[g]])
            parts.append(np.stack([np.full(len(tried), g), tried, cost, losses[tried] - losses[at[g]]]))
        group, position, cost, loss = np.concatenate(parts, axis=1)
        group, position = group.astype(int), position.astype(int)
        larger = position > at[group]
        up, down = (_Moves(group[w], position[w], cost[w], loss[w]) for w in (larger, ~larger))
        return up, down


def _near(position: int, count: int) -> np.ndarray:
    """Returns positions other than a given one, ascending: its neighbours, and others at growing distances."""
    tried = position + _steps(count)
    return tried[(tried >= 0) & (tried < count)]


@cache
def _steps(count: int) -> np.ndarray:
    far = np.geomspace(NEAR, max(NEAR, count), NEAR).astype(int)
    steps = np.unique(np.concatenate([np.arange(1, NEAR + 1), far]))
    return np.concatenate([-steps[::-1], steps])


def _gains(problem: Knapsack, at: np.ndarray) -> list[dict[int, int]]:
    """Returns exchanges that lower the loss and that probably fit, best first, as {group: its new position}."""
    ups, downs = _Moves.around(problem, at)
    left = problem.budget - problem.cost(problem.widths(at))
    most, partner = np.where(ups.cost <= left, ups.loss, np.inf), np.full(len(ups.cost), -1)
    for g in range(len(at)):
        of_group = np.flatnonzero(downs.group == g)[::-1]  # from the smallest saving to the largest
        if not len(of_group):
            continue
        first = np.searchsorted(-downs.cost[of_group], ups.cost - left)
        possible = (first < len(of_group)) & (ups.group != g) & (ups.cost > left)
        move = of_group[np.minimum(first, len(of_group) - 1)]
        total = np.where(possible, ups.loss + downs.loss[move], np.inf)
        partner = np.where(total < most, move, partner)
        most = np.minimum(total, most)
    best = np.argsort(most, kind="stable")[:CHECKED]
    found = []
    for up in best[most[best] < 0].tolist():
        changes = {int(ups.group[up]): int(ups.position[up])}
        if partner[up] >= 0:
            changes[int(downs.group[partner[up]])] = int(downs.position[partner[up]])
        found.append(changes)
    return found


def filled(problem: Knapsack, at: np.ndarray) -> np.ndarray:
    """Widens groups while they fit, those with the largest gain first, then those that use most of the budget."""
    at = at.copy()
    while True:
        ups, _ = _Moves.around(problem, at)
        fits = np.flatnonzero((ups.cost <= problem.budget - problem.cost(problem.widths(at))) & (ups.cost > 0))
        if not len(fits):
            return at
        best = fits[np.lexsort((-ups.cost[fits], ups.loss[fits]))[0]]
        at[ups.group[best]] = ups.position[best]


def closer(problem: Knapsack, at: np.ndarray) -> np.ndarray:
    """Exchanges widths between groups so that more of the budget is used.

    Does nothing if at most the share `enough` of the budget is left. Otherwise looks for exchanges that leave at most
    the share `exact`, and takes the one with the least loss; if there is none, takes the one with the highest cost.
    The loss may rise by `DEARER`.
    """
    spent, most = problem.cost(problem.widths(at)), problem.loss(at) * (1 + DEARER)
    turns, best = [at], at
    for _ in range(2):
        if problem.budget - spent <= problem.enough * problem.budget:
            break
        tried = [trial for turn in turns for trial in _turns(problem, turn)]
        costs = np.array([problem.cost(problem.widths(trial)) for trial in tried])
        possible = [i for i in np.flatnonzero(costs <= problem.budget) if problem.loss(tried[i]) <= most]
        close = [tried[i] for i in possible if costs[i] >= (1 - problem.exact) * problem.budget]
        if close:
            return min(close, key=problem.loss)
        if possible and costs[possible].max() > spent:
            best = tried[max(possible, key=costs.__getitem__)]
            spent = problem.cost(problem.widths(best))
        turns = [tried[i] for i in np.argsort(np.abs(costs - problem.budget), kind="stable")[:TURNS]]
    return best


def _turns(problem: Knapsack, at: np.ndarray) -> list[np.ndarray]:
    """Returns choices two changes of width away: those of the least loss close to the budget, and the closest ones.

    Both are estimates; see `CHECKED`.
    """
    ups, downs = _Moves.around(problem, at)
    group, position, cost, loss = (
        np.concatenate([getattr(part, name) for part in (ups, downs)]) for name in ("group", "position", "cost", "loss")
    )
    some = np.unique(np.linspace(0, len(group) - 1, PAIRED).astype(int)) if len(group) else np.zeros(0, int)
    first, second = (some[part] for part in np.triu_indices(len(some), 1))
    apart = group[first] != group[second]
    first, second = first[apart], second[apart]
    left = problem.budget - problem.cost(problem.widths(at)) - cost[first] - cost[second]
    close = np.flatnonzero((left >= 0) & (left <= problem.exact * problem.budget))
    cheap = close[np.argsort(loss[first[close]] + loss[second[close]], kind="stable")[:TURNS]]
    found = []
    for i in (*cheap.tolist(), *np.argsort(np.abs(left), kind="stable")[:TURNS].tolist()):
        trial = at.copy()
        for move in (first[i], second[i]):
            trial[group[move]] = position[move]
        found.append(trial)
    return found
