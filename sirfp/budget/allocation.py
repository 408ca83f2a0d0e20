"""Selects the channels to remove for a budget: one ranking over all groups of a partition, exact to one channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..errors import InputError
from ..structure.groups import ChannelGroups
from .frozen import check_groups
from .grids import chunks_of, grid, least, smallest, split, widths_at, with_given
from .limits import DEFAULT, Limits

__all__ = ["allocate", "grid", "least", "out_of_reach", "smallest", "split", "widths_at", "worth_for_cost"]

PROMISED = 0.005
"""Largest gap between a plan's cost and the budget, as a share of the budget; docs/budgets.md promises it to users."""
EXACT = 0.0025
"""The gap that exchanges and the search aim for, as a share of the budget: half of `PROMISED`."""
FILL_TRIES = 4000
"""Maximum number of removed chunks that are tried to fill up the budget, best first. It bounds the time: the plan's
cost is computed for each chunk. Once a chunk of a group does not fit, no other chunk of this group is tried."""
EXCHANGES, EXCHANGE_TRIES = 8, 40
"""Maximum number of successive exchanges, and of pairs of groups tried for each, which bound the time. Pairs are tried
in the order of their distance from the budget, with the sum of the two chunks' costs as an estimate."""
SEARCH_TRIES = 5000
"""Maximum number of combinations of widths that the search tries. It bounds the time: the number of combinations grows
exponentially with the number of groups. The search is for networks of few wide chunks, where exchanges do not come
close enough to the budget."""


def allocate(
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    target: float,
    cost: Callable[[np.ndarray], float] | None = None,
    *,
    limits: Limits = DEFAULT,
    dense: float | None = None,
    what: str = "FLOPs",
) -> np.ndarray:
    """Chooses the atoms to keep.

    Each partition is ranked on its own, globally over its groups. All partitions lose the same share of channels,
    lowest scores first (docs/method.md, section 3): the smallest share that meets the budget. Three steps then use the
    rest of the budget:

    1. The best removed channels that still fit are kept after all.
    2. If more than `EXACT` is left, as with few wide chunks, a kept chunk is exchanged for a slightly more expensive
       one.
    3. If more than `PROMISED` is left, other widths are searched, those with the fewest changes first.

    Args:
        found: the groups.
        scores: worth of each channel, {group: (size,)}.
        target: the maximum cost of the plan.
        cost: returns the cost of the atoms kept, (atoms,) of bool; FLOPs by default.
        limits: the limits of the plan.
        dense: the dense model's cost, for messages; by default the cost of all atoms.
        what: name of the cost in messages.

    Groups whose width `limits.keep` decides have this width from the beginning, and all steps leave it.

    Returns:
        The atoms to keep, (atoms,) of bool.

    Raises:
        InputError: the smallest plan within the limits costs more than the target.
    """
    cost = cost or found.flops
    keep = first = with_given(found, limits, scores)
    if cost(keep) <= target:
        return keep
    check_groups(found)
    chunks = _sequence(found, scores, limits)

    order = np.concatenate([np.zeros(0, dtype=np.int64), *chunks])
    ends = np.cumsum([0, *map(len, chunks)])

    def kept_after(count: int) -> np.ndarray:
        left = first.copy()
        left[order[: ends[count]]] = False
        return left

    fewest = cost(kept_after(len(chunks)))
    if fewest > target:
        raise out_of_reach(target, fewest, dense or cost(np.ones_like(keep)), what, limits)
    low, high = 0, len(chunks)  # removing `low` chunks costs more than the target, removing `high` chunks does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(kept_after(middle)) <= target else (middle, high)
    keep = _fill(kept_after(high), chunks[:high], target, cost, found)
    if target - cost(keep) > EXACT * target:
        keep = _exchanged(keep, _by_group(found, chunks), target, cost)
    if target - cost(keep) > PROMISED * target:
        keep = _searched(keep, _by_group(found, chunks), target, cost, first)
    return keep


def worth_for_cost(
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    cost: Callable[[np.ndarray], float],
    exponent: float,
) -> Mapping[str, torch.Tensor]:
    """Divides scores by a power of the channels' cost, as in the greedy solution of a knapsack problem.

    All channels of a group have the same cost: the saving from removing half of the group's channels, divided by their
    number, with all other groups dense. (An atom's score is the mean over its channels.) Negative scores are multiplied
    by the cost instead, so that expensive channels are removed first among them too.

    Args:
        found: the groups.
        scores: worth of each channel, {group: (size,)}.
        cost: returns the cost of the atoms kept, (atoms,) of bool.
        exponent: the power; 0 leaves the scores unchanged.

    Returns:
        {group: (size,)} in float64, with costs as shares of the whole model's cost; `scores` itself if the exponent is
        0.
    """
    if not exponent:
        return scores
    worth = {}
    whole = cost(np.ones(found.atoms, dtype=bool))
    for group in found:
        half = max(1, group.size // 2)
        keep = np.ones(found.atoms, dtype=bool)
        keep[found.spans[group.name]][:half] = False
        factor = max((whole - cost(keep)) / (half * group.width) / whole, 1e-12) ** exponent
        score = scores[group.name].double()
        worth[group.name] = torch.where(score < 0, score * factor, score / factor)
    return worth


def out_of_reach(budget: float, least: float, dense: float, what: str, limits: Limits) -> InputError:
    """Returns the error for a budget below the cost of the smallest plan.

    Args:
        budget: the maximum cost of the plan.
        least: the cost of the smallest plan.
        dense: the cost of the dense model.
        what: name of the cost in messages.
        limits: the limits of the smallest plan.
    """
    rounding = f", ROUND_TO {limits.round_to}" if limits.round_to > 1 else ""
    given = f", KEEP of {len(limits.given)} groups" if limits.given else ""
    return InputError(
        f"the budget cannot be reached: {budget / dense:.3g} of the {what} is asked for, the least that can be kept is "
        f"{math.ceil(least / dense * 1000) / 1000:.3f} (MIN_KEEP {limits.min_keep:.3g}{rounding}{given})"
    )


def _fill(
    keep: np.ndarray, removed: list[np.ndarray], target: float, cost: Callable, found: ChannelGroups
) -> np.ndarray:
    """Keeps removed chunks after all, best first, while the cost stays within the target.

    Once a chunk of a group does not fit, the group's other removed chunks are skipped.
    """
    total, span_of = cost(np.ones_like(keep)), np.zeros(len(keep), dtype=np.int64)
    for order, span in enumerate(found.spans.values()):
        span_of[span] = order
    closed: set[int] = set()
    spent = cost(keep)
    for chunk in removed[: -FILL_TRIES - 1 : -1]:
        if target - spent < 1e-4 * total or len(closed) == len(found.groups):
            break
        group = int(span_of[chunk[0]])
        if group in closed:
            continue
        keep[chunk] = True
        new = cost(keep)
        if new > target:
            keep[chunk] = False
            closed.add(group)
        else:
            spent = new
    return keep


def _by_group(found: ChannelGroups, chunks: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Returns each group's chunks in the order of removal."""
    starts = [span.start for span in found.spans.values()]
    parts: list[list[np.ndarray]] = [[] for _ in starts]
    for chunk in chunks:
        parts[int(np.searchsorted(starts, chunk[0], side="right")) - 1].append(chunk)
    return parts


def _exchanged(keep: np.ndarray, parts: list[list[np.ndarray]], target: float, cost: Callable) -> np.ndarray:
    """Exchanges chunks between groups while that uses more of the target.

    Each exchange removes the next chunk of one group and keeps the last removed chunk of another group.
    """
    keep, spent = keep.copy(), cost(keep)
    gone = [sum(not keep[chunk[0]] for chunk in part) for part in parts]
    for _ in range(EXCHANGES):
        back: dict[int, float] = {}
        off: dict[int, float] = {}
        for i, part in enumerate(parts):
            for moves, at in ((back, gone[i] - 1), (off, gone[i])):
                if 0 <= at < len(part):
                    trial = keep.copy()
                    trial[part[at]] ^= True
                    moves[i] = cost(trial) - spent
        pairs = [(target - spent - b - o, i, j) for i, b in back.items() for j, o in off.items() if i != j]
        pairs = sorted((p for p in pairs if p[0] > -EXACT * target), key=lambda p: abs(p[0]))[:EXCHANGE_TRIES]
        best, best_spent = None, spent
        for _, i, j in pairs:
            trial = keep.copy()
            trial[parts[i][gone[i] - 1]] = True
            trial[parts[j][gone[j]]] = False
            new = cost(trial)
            if best_spent < new <= target:
                best, best_spent = (trial, i, j), new
                if target - new <= EXACT * target:
                    break
        if best is None:
            break
        (keep, i, j), spent = best, best_spent
        gone[i], gone[j] = gone[i] - 1, gone[j] + 1
        if target - spent <= EXACT * target:
            break
    return keep


def _searched(
    keep: np.ndarray,
    parts: list[list[np.ndarray]],
    target: float,
    cost: Callable,
    first: np.ndarray | None = None,
) -> np.ndarray:
    """Searches the widths around a choice, fewest changes first, for a cost at most `EXACT` below the target.

    Args:
        keep: the choice, (atoms,) of bool.
        parts: each group's chunks in the order of removal.
        target: the maximum cost.
        cost: returns the cost of the atoms kept.
        first: the atoms before any chunk is removed, (atoms,) of bool; by default all.

    Returns:
        The best choice that was tried, (atoms,) of bool.
    """
    best, most = keep, cost(keep)
    ring = [tuple(sum(not keep[chunk[0]] for chunk in part) for part in parts)]
    seen = set(ring)
    while ring:
        next_ring = []
        for gone in ring:
            for i, count in ((i, gone[i] + step) for i in range(len(parts)) for step in (-1, 1)):
                other = (*gone[:i], count, *gone[i + 1 :])
                if not 0 <= count <= len(parts[i]) or other in seen:
                    continue
                if len(seen) > SEARCH_TRIES:
                    return best
                seen.add(other)
                next_ring.append(other)
                trial = np.ones_like(keep) if first is None else first.copy()
                for part, number in zip(parts, other, strict=True):
                    for chunk in part[:number]:
                        trial[chunk] = False
                spent = cost(trial)
                if most < spent <= target:
                    best, most = trial, spent
                    if target - spent <= EXACT * target:
                        return best
        ring = next_ring
    return best


def _sequence(found: ChannelGroups, scores: Mapping[str, torch.Tensor], limits: Limits) -> list[np.ndarray]:
    """Returns the chunks of atoms in the order of removal: by the mean relative rank of their atoms in a partition."""
    share = np.zeros(found.atoms)
    values = np.zeros(found.atoms)
    for group in found:
        values[found.spans[group.name]] = scores[group.name].double().cpu().numpy()
    if not np.isfinite(values).all():
        bad = next(g.name for g in found if not np.isfinite(values[found.spans[g.name]]).all())
        raise InputError(f"the scores of {bad} are not finite")
    for members in split([g for g in found if g.name not in limits.widths], limits.partitions):
        if not members:
            continue
        atoms = np.concatenate([np.arange(found.atoms)[found.spans[g.name]] for g in members])
        order = atoms[np.argsort(values[atoms], kind="stable")]
        share[order] = (np.arange(len(order)) + 1) / len(order)
    chunks, keys = [], []
    for group in found:
        span = found.spans[group.name]
        order = np.arange(found.atoms)[span][np.argsort(values[span], kind="stable")]
        own = chunks_of(order, group, limits)
        chunks += own
        if own:  # all chunks but the first have one size
            keys.append(share[own[0]].mean(keepdims=True))
        if len(own) > 1:
            keys.append(share[np.stack(own[1:])].mean(axis=1))
    return [chunks[i] for i in np.argsort(np.concatenate(keys), kind="stable")] if keys else []
