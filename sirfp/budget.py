"""Which channels go so that a budget is met: ranked globally in each partition, exact to the last channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from .errors import InputError
from .groups import ChannelGroups, Group

FILL_TRIES = 4000  # how many chunks are tried to use up what is left of a budget


def allocate(
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    target: float,
    cost: Callable[[np.ndarray], float] | None = None,
    *,
    partitions: Iterable[str] = ("backbone",),
    min_keep: float = 0.02,
    round_to: int = 1,
) -> np.ndarray:
    """Chooses the atoms that stay.

    Every partition is ranked on its own, globally over its groups, and loses the same share of channels, the
    lowest first (METHOD section 3); the share is the least that meets the budget. What a whole channel more would
    overshoot is then spent on the best of the removed channels that still fit.

    Args:
        found: the groups.
        scores: worth of each channel, {group: (size,)}.
        target: the most that the plan may cost.
        cost: the cost of atoms kept, (atoms,) of bool; FLOPs by default.
        partitions: prefixes of group names; the first that any name has makes one partition, the rest another.
        min_keep: the share of its channels that every group keeps at least (see `least`).
        round_to: widths are multiples of this, or whole.

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
        raise InputError(
            f"the budget cannot be reached: {target / cost(keep):.3g} of the model is asked for, the least that "
            f"can be kept is {math.ceil(fewest / cost(keep) * 1000) / 1000:.3f} "
            f"(MIN_KEEP {min_keep}{f', ROUND_TO {round_to}' if round_to > 1 else ''})"
        )
    low, high = 0, len(chunks)  # the cost without `low` chunks is above the target, without `high` at or below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(without(middle)) <= target else (middle, high)
    return _fill(without(high), chunks[:high], target, cost, found)


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
        atoms_at_once = round_to // math.gcd(round_to, group.width)
        for chunk in _chunks(order, least(group, min_keep), atoms_at_once):
            chunks.append(chunk)
            keys.append(share[chunk].mean())
    return [chunks[i] for i in np.argsort(keys, kind="stable")]


def least(group: Group, min_keep: float) -> int:
    """How many channels a group keeps at least: two where a statistic runs over them, as of one value there is none."""
    return min(group.size, max(2 if group.inexact else 1, math.ceil(min_keep * group.size)))


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
    """Partitions groups: those whose name begins with the first prefix that any has, and the rest."""
    groups = list(groups)
    for prefix in prefixes:
        inside = [g for g in groups if g.name == prefix or g.name.startswith(prefix + ".")]
        if inside:
            rest = [g for g in groups if g not in inside]
            return [inside, rest] if rest else [inside]
    return [groups]
