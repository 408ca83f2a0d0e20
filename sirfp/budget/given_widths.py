"""Widths that the user gives to layers: `keep={"layer3.*": 0.5, "layer4.0.conv1": 96}`.

A name or a pattern means the layers that it matches: convolutions, linear layers and other layers that make channels. A
float is the share of their channels that is kept, an int their number. The layers of a group have one width, so a
group takes the value of one entry:

1. the entry that is the full name of one of its layers; several of these must agree;
2. else the last entry that matches one of its layers.

Shares are of the dense network, also after earlier prunings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import InputError, near
from ..network.patterns import matching
from ..structure.atoms import traced_tensors
from ..structure.groups import ChannelGroups, Group, Slice
from ..structure.places import makes
from ..structure.plan import PruningPlan
from .grids import least
from .limits import Limits


@dataclass(frozen=True)
class _Entry:
    """An entry of `keep` that matches a layer of a group: the layer's name, the entry's pattern and its value."""

    layer: str
    pattern: str
    value: float

    def __str__(self) -> str:
        return f"{self.pattern!r}: {self.value}"


def with_given_widths(
    limits: Limits, model: nn.Module, found: ChannelGroups, before: PruningPlan | None = None
) -> Limits:
    """Returns limits with the widths that their `keep` gives to the groups of a model.

    Args:
        limits: the limits.
        model: the model.
        found: its groups.
        before: the plan of earlier prunings, whose dense channels shares are of; None for a dense model.

    Raises:
        InputError: an entry matches no layer or only frozen ones, two of them contradict each other, or a layer cannot
            have the number of channels.
    """
    if not limits.keep:
        return limits
    state = traced_tensors(model)
    layers = {name for name in state if any(makes(model, name, dim, state[name]) for dim in range(state[name].dim()))}
    making = {
        group.name: [s for s in group.slices if makes(model, s.tensor, s.dim, state[s.tensor])] for group in found
    }
    entries: dict[str, dict[str, _Entry]] = {}  # {group: {place in `making`: the last entry that matches}}
    for pattern, value in limits.entries:
        matched = [name for name in matching(model, state, [pattern]) if name in layers]
        if not matched:
            raise InputError(_unknown(pattern, model, layers))
        groups = [name for name, pieces in making.items() if any(s.tensor in matched for s in pieces)]
        if not groups:
            _check_whole(pattern, value, matched, model, state, found)
        for name in groups:
            for piece in (s for s in making[name] if s.tensor in matched):
                entry = _Entry(_layer(piece), pattern, value)
                key = _layer(piece) if pattern == _layer(piece) else ""
                entries.setdefault(name, {})[key] = entry
    given = []
    for group in found:
        chosen = entries.get(group.name)
        if chosen:
            given.append((group.name, _width(group, chosen, making[group.name], found, limits, before)))
    return replace(limits, given=tuple(given))


def _layer(piece: Slice) -> str:
    return piece.tensor.rpartition(".")[0]


def _unknown(pattern: str, model: nn.Module, layers: set[str]) -> str:
    """Returns the message for an entry that matches no layer that makes channels."""
    names = {name.rpartition(".")[0] for name in layers}
    known = {n for name in names for n in (name, *(name[:i] for i, letter in enumerate(name) if letter == "."))}
    if matching(model, traced_tensors(model), [pattern]):
        return f"KEEP names {pattern!r}, which makes no channels of its own: name the layer before it"
    return f"KEEP names {pattern!r}, which no layer of the model matches{near(pattern, known)}"


def _check_whole(
    pattern: str, value: float, matched: list[str], model: nn.Module, state: Mapping[str, torch.Tensor],
    found: ChannelGroups,
) -> None:  # fmt: skip
    """Raises InputError unless an entry keeps all channels of layers that cannot be cut."""
    if isinstance(value, float) and value == 1:
        return
    sizes = {n for name in matched for dim, n in enumerate(state[name].shape) if makes(model, name, dim, state[name])}
    if isinstance(value, int) and sizes == {value}:
        return
    names = {name.rpartition(".")[0] for name in matched}
    reason = next((f.reason for f in found.frozen if f.name in names), "they take part in no group")
    raise InputError(f"KEEP names {pattern!r}, whose channels cannot be cut: {reason}")


def _width(
    group: Group,
    chosen: Mapping[str, _Entry],
    making: list[Slice],
    found: ChannelGroups,
    limits: Limits,
    before: PruningPlan | None,
) -> int:
    """Returns the number of atoms that a group keeps.

    Args:
        group: the group.
        chosen: {full name of a layer, or "" for the last pattern: the entry}.
        making: the group's indices in the layers that make its channels.
        found: all groups.
        limits, before: as in `with_given_widths`.
    """
    exact = [entry for key, entry in chosen.items() if key] or list(chosen.values())
    widths = {_atoms(group, entry, making, found, limits, before): entry for entry in exact}
    if len(widths) > 1:
        first, second = list(widths.values())[:2]
        raise InputError(
            f"KEEP gives {first} and {second}, but the channels of these layers belong together (group "
            f"{group.name!r}): give them one width"
        )
    return next(iter(widths))


def _atoms(
    group: Group,
    entry: _Entry,
    making: list[Slice],
    found: ChannelGroups,
    limits: Limits,
    before: PruningPlan | None,
) -> int:
    """Returns the number of atoms that one entry leaves a group."""
    step, fewest = group.step(limits.round_to), least(group, 0.0)
    if isinstance(entry.value, float):
        dense = before.dense_size(group.name, group.size) if before else group.size
        wanted = round(entry.value * dense / step) * step if entry.value < 1 else dense
        return min(group.size, max(wanted, -(-fewest // step) * step))
    if entry.value == 1:
        raise InputError(f"KEEP gives {entry}, a single channel; write 1.0 to keep all of them")
    pieces = [s for s in making if _layer(s) == entry.layer]
    width = sum(piece.index.shape[1] for piece in pieces)
    place = pieces[0].tensor, pieces[0].dim
    total = found.sizes[place[0]][place[1]]
    sharing = [g for g in found if any((s.tensor, s.dim) == place for s in g.slices)]
    if len(sharing) > 1:
        raise InputError(
            f"KEEP gives {entry}, but the channels of {entry.layer!r} belong to {len(sharing)} groups: give a share"
        )
    atoms, rest = divmod(entry.value - (total - width * group.size), width)
    if rest or not fewest <= atoms <= group.size or (atoms % step and atoms != group.size):
        smallest = total - width * (group.size - max(fewest, step))
        multiple = f" in steps of {width * step}" if width * step > 1 else ""
        raise InputError(
            f"KEEP gives {entry}, but {entry.layer!r} can keep {smallest} to {total} channels{multiple}"
            + (f" (ROUND_TO {limits.round_to})" if limits.round_to > 1 else "")
        )
    return int(atoms)
