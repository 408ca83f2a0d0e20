"""Which channels each group of the dense model keeps after two plans, the later one of the model that the first leaves.

A cut can change which channels go together: a `GroupNorm` that loses its eighth group loses the same channels of all
groups from then on. The later plan then has other groups under the same names, or one group in place of several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Place = tuple[str, int]


class KeptGroups(NamedTuple):
    """The groups of a plan; see `sirfp.structure.plan.PruningPlan`."""

    kept: dict[str, tuple[int, ...]]
    channels: dict[str, int]
    places: dict[str, Place]


class Side(NamedTuple):
    """A dimension that was cut: its dense size, and the indices of it that the first plan and both plans keep."""

    size: int
    before: tuple[int, ...]
    after: tuple[int, ...]


def joined_groups(first: KeptGroups, later: KeptGroups, sides: Mapping[Place, Side]) -> KeptGroups:
    """Joins the groups of two plans.

    A group that the later plan still has keeps its name. Where the groups of a dimension are others, all its channels
    count as one group, since the indices of a group name but one channel of each of its atoms.

    Args:
        first: the groups of the first plan.
        later: those of the later plan; its indices are those that the first plan leaves.
        sides: {place: the side} of all places that one of the plans cuts.
    """
    kept, channels, places = dict(first.kept), dict(first.channels), dict(first.places)
    same: set[str] = set()  # groups of the first plan that the later one has too
    others: set[Place] = set()  # places whose groups are others
    for name, indices in later.kept.items():
        place = later.places.get(name)
        if place is None:  # a plan of an early version
            kept[name], channels[name] = indices, first.channels.get(name, later.channels[name])
            same.add(name)
            continue
        if place in sides:
            indices = tuple(sides[place].before[i] for i in indices)
        there = [known for known in first.kept if first.places.get(known) == place]
        found = next((k for k in there if _is_group(first.kept[k], indices, later.channels[name])), None)
        if found is not None:
            kept[found] = indices
            same.add(found)
        elif place in sides and (there or len(sides[place].before) < sides[place].size):
            others.add(place)
        elif not there:  # else neither plan cuts the place, and its groups keep all that they have
            new = _unused(name, kept)
            kept[new], channels[new], places[new] = indices, later.channels[name], place
    held = {first.places[name] for name in same if name in first.places}
    others |= {p for n, p in first.places.items() if p in sides and p not in held and sides[p].before != sides[p].after}
    for place in others:
        there = [name for name in kept if places.get(name) == place]
        for name in there[1:]:
            del kept[name], channels[name], places[name]
        name = there[0] if there else _unused(place[0].rpartition(".")[0] or place[0], kept)
        kept[name], channels[name], places[name] = sides[place].after, sides[place].size, place
    return KeptGroups(kept, {name: channels[name] for name in kept}, places)


def _is_group(known: tuple[int, ...], indices: tuple[int, ...], size: int) -> bool:
    """Returns True if a group of `size` atoms that keeps `indices` is one of which `known` was kept before."""
    return len(known) == size and set(indices) <= set(known)


def _unused(name: str, kept: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the name, or the name with the first number that makes it new."""
    number, new = 1, name
    while new in kept:
        number += 1
        new = f"{name.partition('#')[0]}#{number}"
    return new
