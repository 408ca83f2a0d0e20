"""Which channels go so that a budget is met: ranked globally in each partition, exact to the last channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from ..errors import InputError
from ..structure.groups import ChannelGroups, Group

EACH = "*"  # among partitions: every group is one
FILL_TRIES = 4000  # how many chunks are tried to use up what is left of a budget
EXACT = 0.0025  # of the budget: what is left at most before channels of unlike cost are exchanged
PROMISED = 0.005  # of the budget: what may be left of it
SEARCH_TRIES = 5000  # how many choices of widths are looked at where more than that is left
EXCHANGES, EXCHANGE_TRIES = 8, 40  # how many are made, and how many pairs are looked at for each


def allocate(
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    target: float,
    cost: Callable[[np.ndarray], float] | None = None,
    *,
    partitions: Iterable[str] = ("backbone",),
    min_keep: float = 0.02,
    round_to: int = 1,
    dense: float | None = None,
    what: str = "FLOPs",
) -> np.ndarray:
    """Chooses the atoms that stay.

    Every partition is ranked on its own, globally over its groups, and loses the same share of channels, the
    lowest first (docs/method.md, section 3); the share is the least that meets the budget. What a whole channel more
    would overshoot is then spent on the best of the removed channels that still fit; where more than a quarter of a
    percent is left even so, as few wide channels do, one that stays is exchanged for one that costs a little more, and
    where that leaves more than half a percent, other widths are searched, those with the fewest changes first.

    Args:
        found: the groups.
        scores: worth of each channel, {group: (size,)}.
        target: the most that the plan may cost.
        cost: the cost of atoms kept, (atoms,) of bool; FLOPs by default.
        partitions: prefixes of group names; the first that any name has makes one partition, the rest another;
            "*" makes one of every group, so that all lose the same share of their channels.
        min_keep: the share of its channels that every group keeps at least (see `least`).
        round_to: widths are multiples of this, or whole.
        dense: what the target is a share of; the cost of everything by default.
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
    partitions = (partitions,) if isinstance(partitions, str) else tuple(partitions)
    chunks = _sequence(found, scores, partitions, min_keep, round_to)

    def without(count: int) -> np.ndarray:
        left = np.ones(found.atoms, dtype=bool)
        if count:
            left[np.concatenate(chunks[:count])] = False
        return left

    fewest = cost(without(len(chunks)))
    if fewest > target:
        raise out_of_reach(target, fewest, dense or cost(keep), what, min_keep, round_to)
    low, high = 0, len(chunks)  # the cost without `low` chunks is above the target, without `high` at or below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(without(middle)) <= target else (middle, high)
    keep = _fill(without(high), chunks[:high], target, cost, found)
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
    """Scores over a power of what a channel of their group costs, so that a ranking tells what a budget buys.

    With exponent 1 and worth that adds up this is the greedy of a knapsack. A channel's cost is the mean of half of
    its group's, with all others whole; negative scores are multiplied by it, so that the dear ones go first.

    Args:
        found: the groups.
        scores: worth of each channel, {group: (size,)}.
        cost: the cost of atoms kept, (atoms,) of bool.
        exponent: 0 leaves the scores as they are.

    Returns:
        {group: (size,)} in float64; a cost is taken as a share of the whole model's.
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


def out_of_reach(asked: float, least: float, dense: float, what: str, min_keep: float, round_to: int) -> InputError:
    """The error of a budget that is less than the least that a plan can keep."""
    return InputError(
        f"the budget cannot be reached: {asked / dense:.3g} of the {what} is asked for, the least that can be kept is "
        f"{math.ceil(least / dense * 1000) / 1000:.3f} "
        f"(MIN_KEEP {min_keep}{f', ROUND_TO {round_to}' if round_to > 1 else ''})"
    )


def smallest(found: ChannelGroups, min_keep: float = 0.02, round_to: int = 1) -> np.ndarray:
    """The least that a plan can keep, (atoms,) of bool."""
    return widths_at(found, 0.0, min_keep, round_to)


def widths_at(found: ChannelGroups, share: float, min_keep: float = 0.02, round_to: int = 1) -> np.ndarray:
    """About the same share of every group's channels, as far as they may go, (atoms,) of bool."""
    keep = np.ones(found.atoms, dtype=bool)
    for group in found:
        span = np.arange(found.atoms)[found.spans[group.name]]
        chunks = _chunks(span, least(group, min_keep), _at_once(group, round_to))
        for chunk in chunks[: round((1 - share) * group.size / max(1, len(chunks[0]))) if chunks else 0]:
            keep[chunk] = False
    return keep


def _fill(
    keep: np.ndarray, removed: list[np.ndarray], target: float, cost: Callable, found: ChannelGroups
) -> np.ndarray:
    """Takes back removed chunks, the best first, as long as they fit; within a group only in order."""
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
    """Gives up the next chunk of one group for that of another, as long as it comes closer to the target from below."""
    keep, spent = keep.copy(), cost(keep)
    gone = [sum(not keep[chunk[0]] for chunk in part) for part in parts]
    for _ in range(EXCHANGES):
        back, off = {}, {}
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
    """Looks at widths around a choice, the fewest changes first, until some come close to the target from below."""
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


def _sequence(
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    partitions: tuple[str, ...],
    min_keep: float,
    round_to: int,
) -> list[np.ndarray]:
    """The order in which chunks of atoms go: by the share of its partition that goes with it."""
    share = np.zeros(found.atoms)
    values = np.zeros(found.atoms)
    for group in found:
        values[found.spans[group.name]] = scores[group.name].double().cpu().numpy()
    if not np.isfinite(values).all():
        bad = next(g.name for g in found if not np.isfinite(values[found.spans[g.name]]).all())
        raise InputError(f"the scores of {bad} are not finite")
    for members in split(found.groups, partitions):
        atoms = np.concatenate([np.arange(found.atoms)[found.spans[g.name]] for g in members])
        order = atoms[np.argsort(values[atoms], kind="stable")]
        share[order] = (np.arange(len(order)) + 1) / len(order)
    chunks, keys = [], []
    for group in found:
        span = found.spans[group.name]
        order = np.arange(found.atoms)[span][np.argsort(values[span], kind="stable")]
        for chunk in _chunks(order, least(group, min_keep), _at_once(group, round_to)):
            chunks.append(chunk)
            keys.append(share[chunk].mean())
    return [chunks[i] for i in np.argsort(keys, kind="stable")]


def least(group: Group, min_keep: float) -> int:
    """How many channels a group keeps at least: two where a statistic runs over them, as of one value there is none."""
    return min(group.size, max(2 if group.inexact else 1, math.ceil(min_keep * group.size)))


def _at_once(group: Group, round_to: int) -> int:
    """How many atoms go together so that a width stays a multiple."""
    return round_to // math.gcd(round_to, group.width)


def _chunks(order: np.ndarray, least: int, round_to: int) -> list[np.ndarray]:
    """Cuts a group's atoms, lowest first, so that after each chunk its width is a multiple of `round_to`."""
    least = math.ceil(least / round_to) * round_to
    first = len(order) % round_to or round_to
    chunks, start = [], 0
    while len(order) - start - (first if start == 0 else round_to) >= least:
        stop = start + (first if start == 0 else round_to)
        chunks.append(order[start:stop])
        start = stop
    return chunks


def split(groups: Iterable[Group], prefixes: Iterable[str]) -> list[list[Group]]:
    """Partitions groups: those whose name begins with the first prefix that any has, and the rest; at "*" each."""
    groups = list(groups)
    for prefix in prefixes:
        if prefix == EACH:
            return [[group] for group in groups]
        inside = [g for g in groups if g.name == prefix or g.name.startswith(prefix + ".")]
        if inside:
            rest = [g for g in groups if g not in inside]
            return [inside, rest] if rest else [inside]
    return [groups]
