"""Which channels go so that a budget is met: ranked globally in each partition, exact to the last channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from ..errors import InputError
from ..structure.groups import ChannelGroups, Group
from .limits import DEFAULT, Limits

EACH = "*"
"""Among the prefixes of partitions: every group is a partition."""
PROMISED = 0.005
"""How far below the budget a plan may stay, as a share of the budget. docs/budgets.md promises it to users."""
EXACT = 0.0025
"""How close exchanges and the search try to come, as a share of the budget: half of what is promised."""
FILL_TRIES = 4000
"""The most removed chunks that are tried in what is left of a budget. It bounds the time: the plan's cost is
computed for each. The best removed chunks come first; a group whose next chunk does not fit is not tried again."""
EXCHANGES, EXCHANGE_TRIES = 8, 40
"""The most exchanges in a row, and the pairs of groups tried for each. They bound the time. The pairs that come closest
to the budget by the cost of each chunk alone are tried first; only where two groups meet in one layer is the sum of
both not what the exchange costs, so that few pairs have to be tried."""
SEARCH_TRIES = 5000
"""The most choices of widths that the search looks at. It bounds the time: the number of choices grows exponentially
with the number of groups, and the search is for networks of few wide chunks, whose budgets exchanges do not meet."""


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
    """Chooses the atoms that stay.

    Every partition is ranked on its own, globally over its groups, and loses the same share of channels, the lowest
    first (docs/method.md, section 3); the share is the least that meets the budget. What is then left of the budget
    goes to the best of the removed channels that still fit. If more than `EXACT` is left, as happens with few wide
    chunks, a chunk that stays is exchanged for one that costs a little more; if more than `PROMISED` is left even so,
    other widths are searched, those with the fewest changes first.

    Args:
        found: the groups.
        scores: worth of each channel, {group: (size,)}.
        target: the most that the plan may cost.
        cost: the cost of atoms kept, (atoms,) of bool; FLOPs by default.
        limits: what the choice has to respect.
        dense: what the target is a share of in messages; by default the cost of all atoms.
        what: the cost in words.

    Returns:
        (atoms,) of bool.

    Raises:
        InputError: if the least that can be kept costs more than the target.
    """
    cost = cost or found.flops
    keep = np.ones(found.atoms, dtype=bool)
    if cost(keep) <= target or not found.groups:
        if cost(keep) > target:
            raise InputError("nothing in the model can be cut: every channel is frozen")
        return keep
    chunks = _sequence(found, scores, limits)

    def kept_after(count: int) -> np.ndarray:
        left = np.ones(found.atoms, dtype=bool)
        if count:
            left[np.concatenate(chunks[:count])] = False
        return left

    fewest = cost(kept_after(len(chunks)))
    if fewest > target:
        raise out_of_reach(target, fewest, dense or cost(keep), what, limits)
    low, high = 0, len(chunks)  # without the first `low` chunks the cost is above the target, without `high` it is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(kept_after(middle)) <= target else (middle, high)
    keep = _fill(kept_after(high), chunks[:high], target, cost, found)
    if target - cost(keep) > EXACT * target:
        keep = _exchanged(keep, _by_group(found, chunks), target, cost)
    if target - cost(keep) > PROMISED * target:
        keep = _searched(keep, _by_group(found, chunks), target, cost)
    return keep


def worth_for_cost(
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    cost: Callable[[np.ndarray], float],
    exponent: float,
) -> Mapping[str, torch.Tensor]:
    """Scores divided by a power of what a channel of their group costs, as in the greedy solution of a knapsack.

    A channel's cost is what half of its group's channels cost, divided by their number, with all other groups dense.
    Negative scores are multiplied by the cost instead, so that among them too the expensive channels go first.

    Args:
        found: the groups.
        scores: worth of each channel, {group: (size,)}.
        cost: the cost of atoms kept, (atoms,) of bool.
        exponent: 0 leaves the scores as they are.

    Returns:
        {group: (size,)} in float64, costs taken as shares of the whole model's; the scores themselves at exponent 0.
    """
    if not exponent:
        return scores
    worth = {}
    whole = cost(np.ones(found.atoms, dtype=bool))
    for group in found:
        half = max(1, group.size // 2)
        keep = np.ones(found.atoms, dtype=bool)
        keep[found.spans[group.name]][:half] = False
        factor = max((whole - cost(keep)) / half / whole, 1e-12) ** exponent
        score = scores[group.name].double()
        worth[group.name] = torch.where(score < 0, score * factor, score / factor)
    return worth


def out_of_reach(budget: float, least: float, dense: float, what: str, limits: Limits) -> InputError:
    """The error for a budget below the cost of the smallest plan.

    Args:
        budget: what the plan may cost.
        least: what the smallest plan costs.
        dense: what the dense model costs.
        what: the cost in words.
        limits: that the smallest plan respects.
    """
    rounding = f", ROUND_TO {limits.round_to}" if limits.round_to > 1 else ""
    return InputError(
        f"the budget cannot be reached: {budget / dense:.3g} of the {what} is asked for, the least that can be kept is "
        f"{math.ceil(least / dense * 1000) / 1000:.3f} (MIN_KEEP {limits.min_keep}{rounding})"
    )


def smallest(found: ChannelGroups, limits: Limits = DEFAULT) -> np.ndarray:
    """The atoms of the smallest plan within limits, (atoms,) of bool."""
    return widths_at(found, 0.0, limits)


def widths_at(found: ChannelGroups, share: float, limits: Limits = DEFAULT) -> np.ndarray:
    """Atoms with about the same share of every group's channels, within limits, (atoms,) of bool."""
    keep = np.ones(found.atoms, dtype=bool)
    for group in found:
        span = np.arange(found.atoms)[found.spans[group.name]]
        chunks = _chunks(span, group, limits)
        for chunk in chunks[: round((1 - share) * group.size / max(1, len(chunks[0]))) if chunks else 0]:
            keep[chunk] = False
    return keep


def _fill(
    keep: np.ndarray, removed: list[np.ndarray], target: float, cost: Callable, found: ChannelGroups
) -> np.ndarray:
    """Keeps removed chunks after all, the best first, as long as the target allows; within a group only in order."""
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
    """The chunks of each group, the first to go first."""
    starts = [span.start for span in found.spans.values()]
    parts: list[list[np.ndarray]] = [[] for _ in starts]
    for chunk in chunks:
        parts[int(np.searchsorted(starts, chunk[0], side="right")) - 1].append(chunk)
    return parts


def _exchanged(keep: np.ndarray, parts: list[list[np.ndarray]], target: float, cost: Callable) -> np.ndarray:
    """Removes the next chunk of one group and keeps the last removed of another, while that uses more of the target."""
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


def _searched(keep: np.ndarray, parts: list[list[np.ndarray]], target: float, cost: Callable) -> np.ndarray:
    """Tries the widths around a choice, fewest changes first, until the cost is at most `EXACT` below the target."""
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
                trial = np.ones_like(keep)
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
    """The chunks of atoms in the order in which they go: by the share of their partition that is gone after them."""
    share = np.zeros(found.atoms)
    values = np.zeros(found.atoms)
    for group in found:
        values[found.spans[group.name]] = scores[group.name].double().cpu().numpy()
    if not np.isfinite(values).all():
        bad = next(g.name for g in found if not np.isfinite(values[found.spans[g.name]]).all())
        raise InputError(f"the scores of {bad} are not finite")
    for members in split(found.groups, limits.partitions):
        atoms = np.concatenate([np.arange(found.atoms)[found.spans[g.name]] for g in members])
        order = atoms[np.argsort(values[atoms], kind="stable")]
        share[order] = (np.arange(len(order)) + 1) / len(order)
    chunks, keys = [], []
    for group in found:
        span = found.spans[group.name]
        order = np.arange(found.atoms)[span][np.argsort(values[span], kind="stable")]
        for chunk in _chunks(order, group, limits):
            chunks.append(chunk)
            keys.append(share[chunk].mean())
    return [chunks[i] for i in np.argsort(keys, kind="stable")]


def least(group: Group, min_keep: float) -> int:
    """How many channels a group keeps at least: at least 2 where a statistic runs over them; 1 has no variance."""
    return min(group.size, max(2 if group.inexact else 1, math.ceil(min_keep * group.size)))


def _chunks(order: np.ndarray, group: Group, limits: Limits) -> list[np.ndarray]:
    """Cuts a group's atoms, lowest first, into chunks so that after each the group's width respects the limits."""
    step = limits.round_to // math.gcd(limits.round_to, group.width)  # atoms at a time, so that widths stay multiples
    fewest = math.ceil(least(group, limits.min_keep) / step) * step
    chunks, start, size = [], 0, len(order) % step or step
    while len(order) - start - size >= fewest:
        chunks.append(order[start : start + size])
        start, size = start + size, step
    return chunks


def split(groups: Iterable[Group], prefixes: Iterable[str]) -> list[list[Group]]:
    """Partitions groups by prefixes of their names, as `Limits.partitions` says."""
    groups = list(groups)
    for prefix in prefixes:
        if prefix == EACH:
            return [[group] for group in groups]
        inside = [g for g in groups if g.name == prefix or g.name.startswith(prefix + ".")]
        if inside:
            rest = [g for g in groups if g not in inside]
            return [inside, rest] if rest else [inside]
    return [groups]
