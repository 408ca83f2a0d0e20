"""The widths that the limits of a plan allow a group, and the order in which its atoms leave."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from ..structure.groups import ChannelGroups, Group
from .limits import DEFAULT, Limits

EACH = "*"
"""A prefix that makes every group a partition."""


def smallest(found: ChannelGroups, limits: Limits = DEFAULT) -> np.ndarray:
    """Returns the atoms of the smallest plan within the limits, (atoms,) of bool."""
    return widths_at(found, 0.0, limits)


def widths_at(found: ChannelGroups, share: float, limits: Limits = DEFAULT) -> np.ndarray:
    """Returns atoms with about the same share of every group's channels, within the limits, (atoms,) of bool."""
    keep = with_given(found, limits)
    for group in found:
        span = np.arange(found.atoms)[found.spans[group.name]]
        chunks = chunks_of(span, group, limits)
        for chunk in chunks[: round((1 - share) * group.size / max(1, len(chunks[0]))) if chunks else 0]:
            keep[chunk] = False
    return keep


def with_given(found: ChannelGroups, limits: Limits, scores: Mapping[str, torch.Tensor] | None = None) -> np.ndarray:
    """Returns all atoms but those that groups of a given width lose, (atoms,) of bool.

    These are the ones with the lowest scores, or, without scores, the first ones.
    """
    keep = np.ones(found.atoms, dtype=bool)
    for group in found:
        gone = group.size - limits.widths.get(group.name, group.size)
        order = np.arange(group.size)
        if gone and scores is not None:
            order = np.argsort(scores[group.name].double().cpu().numpy(), kind="stable")
        keep[found.spans[group.name]][order[:gone]] = False
    return keep


def least(group: Group, min_keep: float, dense: int = 0) -> int:
    """Returns the minimum width of a group: at least 2 if a statistic runs over it, as one value has no variance.

    Args:
        group: the group.
        min_keep: the smallest share of its atoms that it keeps.
        dense: the number of atoms that the share is of; 0 for those that the group has now.
    """
    return min(group.size, max(2 if group.inexact else 1, math.ceil(min_keep * (dense or group.size))))


def chunks_of(order: np.ndarray, group: Group, limits: Limits) -> list[np.ndarray]:
    """Splits a group's atoms, lowest first, into chunks. The group's width is within the limits after each removal.

    A group of a given width has no chunks.
    """
    if group.name in limits.widths:
        return []
    step = group.step(limits.round_to)
    fewest = math.ceil(least(group, limits.min_keep, limits.dense_sizes.get(group.name, 0)) / step) * step
    chunks, start, size = [], 0, len(order) % step or step
    while len(order) - start - size >= fewest:
        chunks.append(order[start : start + size])
        start, size = start + size, step
    return chunks


def grid(group: Group, limits: Limits) -> tuple[int, ...]:
    """Returns the widths that a group may have within the limits, in atoms, ascending."""
    if group.name in limits.widths:
        return (limits.widths[group.name],)
    removed = np.cumsum([0, *map(len, chunks_of(np.arange(group.size), group, limits))])
    return tuple((group.size - removed[::-1]).tolist())


def split(groups: Iterable[Group], prefixes: Iterable[str]) -> list[list[Group]]:
    """Partitions groups by prefixes of their names; see `Limits.partitions`."""
    groups = list(groups)
    for prefix in prefixes:
        if prefix == EACH:
            return [[group] for group in groups]
        inside = [g for g in groups if g.name == prefix or g.name.startswith(prefix + ".")]
        if inside:
            rest = [g for g in groups if g not in inside]
            return [inside, rest] if rest else [inside]
    return [groups]
