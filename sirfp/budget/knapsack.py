"""Chooses a width for each of several groups so that a sum of losses is least and a cost is within a budget.

The cost of a layer is a product of the widths of the two groups that meet in it, so what a group saves depends on the
widths of the others. Three steps, from several starts, of which the best result counts; where there are few choices,
all of them are tried too:

1. *A price for cost* (Lagrange multiplier). At a given price each group in turn takes the width of the least loss plus
   price times cost, at the present widths of the others, until none changes. The price rises from one that removes
   nothing; groups then leave the dense network in the order of their loss for each unit of cost saved, which is the
   greedy algorithm on the lower convex hull of each loss. It is bisected at the budget. The same is done downwards from
   the smallest widths.
2. *Exchanges*. What is left of the budget goes to the group that gains most by it; a group becomes wider and another
   one narrower while that lowers the loss.
3. *Meeting the budget*. If much of the budget is still left, as with few possible widths, exchanges that use it are
   made, unless they raise the loss noticeably.

Relatives: SPDY (Frantar and Alistarh, ICML 2022) and HALP (Shen et al., NeurIPS 2022), which assume costs of layers
that do not depend on one another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from .exchanges import Knapsack, closer, exchanged, filled

COARSE = 96
"""Largest number of widths of a group that are tried while the price moves over orders of magnitude."""
RISE = 1.3
"""Factor between successive prices."""
PRICES = 400
"""Maximum number of successive prices. They cover 45 orders of magnitude."""
SWEEPS = 20
"""Maximum number of sweeps over all groups at one price. Each sweep lowers loss plus price times cost, so that few are
enough."""
BISECTIONS = 20
"""Number of prices tried between one that exceeds the budget and one that does not."""
FEW = 300
"""Number of choices of widths up to which all of them are tried, in some milliseconds."""
FEW_GROUPS, KICKS = 8, 30
"""Number of groups up to which exchanges begin again from choices changed at random, and how often. Where there are few
groups, a choice from which no exchange lowers the loss is more often not the best one."""
SHARES = 12
"""Number of shares of the largest saving that are tried where groups are in parts."""


def solve(problem: Knapsack) -> np.ndarray:
    """Returns the position of each group's width in its grid, (groups,) of int, for the least loss that was found."""
    dense = np.array([len(grid) - 1 for grid in problem.grids])
    if problem.fits(dense):
        return dense
    starts = {tuple(start.tolist()): start for start in _starts(problem, dense)}
    found = [exchanged(problem, start) for start in starts.values()]
    if math.prod(len(grid) for grid in problem.grids) <= FEW:
        found.append(best_of_all(problem))
    elif len(problem.grids) <= FEW_GROUPS:
        found.append(kicked(problem, min(found, key=problem.loss)))
    return closer(problem, filled(problem, min(found, key=problem.loss)))


def best_of_all(problem: Knapsack) -> np.ndarray:
    """Returns the positions of the least loss within the budget, by trying all; the smallest ones if none fits."""
    every = itertools.product(*(range(len(grid)) for grid in problem.grids))
    fitting = (at for at in map(np.array, every) if problem.fits(at))
    return min(fitting, key=problem.loss, default=np.zeros(len(problem.grids), dtype=int))


def kicked(problem: Knapsack, at: np.ndarray) -> np.ndarray:
    """Returns positions that lose no more than given ones: exchanges again after two groups were changed at random.

    Args:
        problem: the problem.
        at: positions within the budget.
    """
    generator = np.random.default_rng(0)
    for _ in range(KICKS):
        trial = at.copy()
        for group in generator.integers(len(at), size=2):
            trial[group] = generator.integers(len(problem.grids[group]))
        while trial.any() and not problem.fits(trial):
            trial[generator.choice(np.flatnonzero(trial))] -= 1
        if problem.fits(trial):
            at = min((at, exchanged(problem, trial)), key=problem.loss)
    return at


def solve_parts(problem: Knapsack, parts: list[list[int]]) -> np.ndarray:
    """Returns positions at which each part of the groups makes the same share of its largest saving, as in `solve`.

    The largest saving of a part, and the saving that it makes, are those with all other groups at their largest widths.
    The share is the smallest one that meets the budget. What is left of the budget is then used by any group.

    Args:
        problem: the problem.
        parts: the positions of each part's groups; together all groups, each once.
    """
    if len(parts) == 1:
        return solve(problem)
    dense = np.array([len(grid) - 1 for grid in problem.grids])
    whole, at, low, high = problem.cost(problem.widths(dense)), np.zeros_like(dense), 0.0, 1.0
    smallest = [np.where(np.isin(np.arange(len(dense)), part), 0, dense) for part in parts]
    savings = [whole - problem.cost(problem.widths(one)) for one in smallest]
    for _ in range(SHARES):
        middle, trial = (low + high) / 2, dense.copy()
        for part, saving in zip(parts, savings, strict=True):
            trial[part] = solve(_part(problem, part, whole - middle * saving))
        if problem.fits(trial):
            at, high = trial, middle
        else:
            low = middle
    return filled(problem, at)


def _part(problem: Knapsack, part: list[int], budget: float) -> Knapsack:
    """Returns the problem of a part of the groups, with all others at their largest widths."""
    dense = np.array([grid[-1] for grid in problem.grids], dtype=float)
    dense[part] = 0
    cost = replace(problem.cost, fixed=problem.cost.fixed + problem.cost.members @ dense)
    cost = replace(cost, members=problem.cost.members[:, part])
    grids, losses = [problem.grids[g] for g in part], [problem.losses[g] for g in part]
    return replace(problem, grids=grids, losses=losses, cost=cost, budget=budget)


def _starts(problem: Knapsack, dense: np.ndarray) -> Iterator[np.ndarray]:
    """Yields choices within the budget: at one price for cost, at one price for atoms, and with even shares."""
    yield by_price(problem, dense)
    yield by_price(problem, np.zeros_like(dense))
    savings = [problem.along(dense, g) for g in range(len(dense))]
    for units in (savings, [grid / grid[-1] for grid in problem.grids], problem.grids):
        yield at_fixed_costs(problem, units)
    yield even(problem)


def by_price(problem: Knapsack, at: np.ndarray) -> np.ndarray:
    """Moves the price for cost until the budget is met from above, or just not exceeded from below.

    Args:
        problem: the problem.
        at: the first widths, as positions. From the largest ones the price rises, from the smallest ones it falls.

    Returns:
        Widths within the budget, as positions.
    """
    coarse = [np.unique(np.linspace(0, len(grid) - 1, COARSE).astype(int)) for grid in problem.grids]
    full = [np.arange(len(grid)) for grid in problem.grids]
    falls = problem.fits(at)
    best, price = (at if falls else np.zeros_like(at)), _first_price(problem, at)
    near, near_price = at, price  # `near` is on the first widths' side of the budget
    for _ in range(PRICES):
        at = _settled(problem, near, price, coarse)
        if problem.fits(at) != falls:
            break
        near, near_price = at, price
        price = price / RISE if falls else price * RISE
    for _ in range(BISECTIONS):
        best = min((best, *(x for x in (near, at) if problem.fits(x))), key=problem.loss)
        middle = (near_price * price) ** 0.5
        at = _settled(problem, near, middle, full)
        if problem.fits(at) == falls:
            near, near_price = at, middle
        else:
            price = middle
    return min((best, *(x for x in (near, at) if problem.fits(x))), key=problem.loss)


def _first_price(problem: Knapsack, at: np.ndarray) -> float:
    """Returns the price at which a first group changes its width, when the price rises or falls from these widths."""
    ratios = []
    for g, losses in enumerate(problem.losses):
        cost, loss = problem.along(at, g), losses - losses[at[g]]
        changes = (loss != 0) & (cost != 0)
        ratios.append(loss[changes] / -cost[changes])
    each = np.concatenate([ratio[ratio > 0] for ratio in ratios])
    if not len(each):
        return 1.0
    return float(each.max() if problem.fits(at) else each.min())


def _settled(problem: Knapsack, at: np.ndarray, price: float, tried: list[np.ndarray]) -> np.ndarray:
    """Gives each group in turn the width of the least loss plus price times cost, until none changes.

    Args:
        problem: the problem.
        at: the widths to start from, as positions.
        price: the loss that a unit of cost is worth.
        tried: the positions that each group tries.

    Returns:
        The widths as positions.
    """
    at = at.copy()
    sizes = problem.cost.sizes(problem.widths(at))
    for _ in range(SWEEPS):
        changed = False
        for g, (grid, losses, positions) in enumerate(zip(problem.grids, problem.losses, tried, strict=True)):
            steps = grid[positions] - grid[at[g]]
            total = losses[positions] + price * problem.cost.along(sizes, g, steps)
            best = int(total.argmin())
            if total[best] < losses[at[g]]:
                at[g], sizes, changed = positions[best], sizes + steps[best] * problem.cost.members[:, g], True
        if not changed:
            break
    return at


def at_fixed_costs(problem: Knapsack, costs: list[np.ndarray]) -> np.ndarray:
    """Returns the widths within the budget, as positions, at the lowest price for costs that do not affect one another.

    Args:
        problem: the problem.
        costs: the cost of each width of each group.
    """

    def at_price(price: float) -> np.ndarray:
        return np.array([int((loss + price * cost).argmin()) for loss, cost in zip(problem.losses, costs, strict=True)])

    low, high = 0.0, 1.0
    for _ in range(PRICES):
        if problem.fits(at_price(high)):
            break
        low, high = high, high * 10
    for _ in range(2 * BISECTIONS):
        middle = (low * high) ** 0.5 if low else high / 10
        low, high = (low, middle) if problem.fits(at_price(middle)) else (middle, high)
    return at_price(high) if problem.fits(at_price(high)) else np.zeros(len(costs), dtype=int)


def even(problem: Knapsack) -> np.ndarray:
    """Returns the widths within the budget, as positions, with about the same share of each group's atoms."""
    at, low, high = np.zeros(len(problem.grids), dtype=int), 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        even = np.array([max(0, int(np.searchsorted(g, middle * g[-1], side="right")) - 1) for g in problem.grids])
        if problem.fits(even):
            at, low = even, middle
        else:
            high = middle
    return at
