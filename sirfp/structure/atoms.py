"""Builds atoms and groups from the labels of a trace.

Channels with tied labels form a *component*, which must be kept or removed as a whole. A component has indices in one
or more *places*, which are dimensions of parameters and buffers. A component without frozen labels is an *atom*, the
unit of pruning. Atoms with indices in the same places form a *group* and compete with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..network.branches import training_only, within
from ..network.plain_tensors import plain_tensors
from ..network.walk import walk_parameters, walk_state
from ..tracing import ChannelTrace
from ..tracing.outputs import Outputs, channel_dim
from .cost import Cost
from .groups import ChannelGroups, Emission, Feature, Frozen, Group, SizeCall, Slice
from .places import Components, Places, apart, components_of, places_of


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the model's parameters and floating-point buffers by name, with shared tensors listed once."""
    parameters, buffers = walk_state(model)
    return dict([*parameters, *((name, buffer) for name, buffer in buffers if buffer.is_floating_point())])


def traced_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns what `state_tensors` returns, and the constants that are plain attributes of modules."""
    return {**state_tensors(model), **plain_tensors(model)}


def build_groups(
    model: nn.Module, trace: ChannelTrace, state: dict, widths: dict, outputs: Outputs, calls: Sequence[SizeCall] = ()
) -> ChannelGroups:
    """Builds atoms and groups from the labels of a trace.

    Args:
        model: the model that was traced.
        trace: the trace.
        state: the model's tensors by name (`state_tensors`).
        widths: {module: {feature: labels of its channels}}, for the widths that modules announce.
        outputs: {module: labels of each dimension of its output}.
        calls: the calls in which the model's code gives sizes, with labels in place of atoms.
    """
    components = components_of(trace)
    places = places_of(model, trace, state, components)
    places = replace(places, blocks=apart(places.blocks, components, calls))
    features = _features(model, trace, components.of, outputs)
    groups, frozen, atom_of = _groups(places, components, features)
    groups = _with_widths(groups, state)
    branches = training_only(model)
    parameters = [(p, trace.state_dims[n]) for n, p in walk_parameters(model) if not within(n, branches)]
    atoms = sum(group.size for group in groups)
    return ChannelGroups(
        groups=groups,
        frozen=frozen,
        sizes={name: tuple(tensor.shape) for name, tensor in state.items()},
        cost=Cost.build(trace.products, parameters, atom_of, components.of, atoms),
        emissions=_emissions(trace, state, atom_of[components.of]),
        widths={m: {f: atom_of[components.of[d]] for f, d in v.items()} for m, v in widths.items()},
        positions={m: atom_of[components.of[d]] for m, d in trace.positions.items() if d is not None},
        branches=branches,
        calls=tuple(
            replace(c, atoms=tuple(None if d is None else atom_of[components.of[d]] for d in c.atoms)) for c in calls
        ),
        heads=trace.heads,
    )


def _groups(
    places: Places, components: Components, features: list
) -> tuple[tuple[Group, ...], tuple[Frozen, ...], np.ndarray]:
    """Makes one group from the components of each signature, in the order of the model.

    Returns:
        The groups, the frozen channels, and the atom of each component, (components,), -1 if it is frozen.
    """
    groups: list[Group] = []
    frozen: dict[tuple[str, str], int] = {}
    atom_of = np.full(components.count, -1)
    numbered: dict[str, int] = {}
    holders = _holders(features)
    stays = np.zeros(components.count, dtype=bool)
    stays[list(components.frozen)] = True
    leads = [(_lead(signature, places.makes), signature, blocks) for signature, blocks in places.blocks]
    atoms = 0
    for lead, signature, blocks in sorted(leads, key=lambda each: each[0]):
        name = places.names[lead][0].rpartition(".")[0] or places.names[lead][0]
        kept = stays[blocks[:, 0, 0]]
        made = int((signature == lead).sum()) if places.makes[lead] else 0  # report channels only, not kernel areas
        for component in blocks[kept, 0, 0].tolist() if made else ():
            reason = components.frozen[component]
            frozen[name, reason] = frozen.get((name, reason), 0) + made
        first = int(np.flatnonzero(signature == lead)[0])
        free = blocks[~kept]
        if not len(free):
            continue
        free = free[np.argsort(free[:, first, 2], kind="stable")]
        ids, index = free[:, 0, 0], free[:, :, 2]
        atom_of[ids] = atoms + np.arange(len(ids))
        atoms += len(ids)
        numbered[name] = numbered.get(name, 0) + 1
        groups.append(
            Group(
                name=name if numbered[name] == 1 else f"{name}#{numbered[name]}",
                place=places.names[lead],
                slices=tuple(
                    Slice(places.names[place][0], places.names[place][1], index[:, signature == place])
                    for place in dict.fromkeys(signature.tolist())
                ),
                features=_features_of(ids, features, holders),
                channels=tuple(index[:, first].tolist()),
                inexact=next((components.inexact[i] for i in ids.tolist() if i in components.inexact), None)
                if components.inexact
                else None,
            )
        )
    return tuple(groups), tuple(Frozen(name, n, reason) for (name, reason), n in frozen.items()), atom_of


def _with_widths(groups: tuple[Group, ...], state: dict) -> tuple[Group, ...]:
    """Fills in `Group.layer_widths`: from tensors of two and more dimensions, as vectors follow a layer."""
    widths = [[s.index.shape[1] for s in group.slices if state[s.tensor].dim() > 1] for group in groups]
    return tuple(replace(group, layer_widths=tuple(each)) for group, each in zip(groups, widths, strict=True))


def _emissions(trace: ChannelTrace, state: dict, atom_of_label: np.ndarray) -> tuple[Emission, ...]:
    """Returns, for each call of a layer that reads channels, the constants that emptied channels give it."""
    by_tensor = {id(tensor): name for name, tensor in state.items()}
    norms = _own_norms(trace)
    return tuple(
        Emission(
            by_tensor[id(consumer.weight)],
            atom_of_label[consumer.labels],
            consumer.emitted,
            consumer.groups,
            by_tensor[id(norms[id(consumer)])] if id(consumer) in norms else None,
            consumer.positions,
        )
        for consumer in trace.consumers
    )


def _own_norms(trace: ChannelTrace) -> dict[int, torch.Tensor]:
    """Finds the batch norms that are the only consumer of a layer and normalise no other layer.

    Returns:
        {id of the layer's call (a `Consumer`): the norm's running mean}.
    """
    weights: dict[int, set] = {}
    for mean, consumer in trace.normed:
        weights.setdefault(id(mean), set()).add(None if consumer is None else id(consumer.weight))
    return {
        id(consumer): mean
        for mean, consumer in trace.normed
        if consumer is not None and consumer.readers == 1 and len(weights[id(mean)]) == 1
    }


def _lead(signature: np.ndarray, making: list[bool]) -> int:
    """Returns the place that names a group: the first output dimension of a layer, else the first place."""
    unique = dict.fromkeys(signature.tolist())
    return next((place for place in unique if making[place]), next(iter(unique)))


HIDDEN = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
"""Modules that do not return the outputs of their linear layers."""


def _features(
    model: nn.Module, trace: ChannelTrace, component: np.ndarray, outputs: Outputs
) -> list[tuple[Feature, np.ndarray, np.ndarray]]:
    """Lists every module whose output holds channels, once.

    Returns:
        (feature, channels, components) of each module: the feature, with an empty index; its channels sorted by
        component; and the sorted components.
    """
    found = {}
    for tap in trace.taps:
        module = (trace.name(tap.tensor) or "").rpartition(".")[0]
        if module not in found and not isinstance(model.get_submodule(module), HIDDEN):
            ids = component[tap.labels]
            empty = np.zeros((0, 0), dtype=np.int64)
            dim = channel_dim(tap.dim, [None if d is None else component[d] for d in outputs.dims.get(module, ())], ids)
            shape = outputs.shapes.get(module)
            if shape is not None and (not -len(shape) <= dim < len(shape) or shape[dim] != len(ids)):
                continue  # it returns others, as a linear layer that gates its own outputs does
            order = np.argsort(ids, kind="stable")
            feature = Feature(module, tap.norm, dim, empty, outputs.positions(module, len(ids)), len(ids))
            found[module] = (feature, order, ids[order])
    return list(found.values())


def _holders(features: list) -> tuple[np.ndarray, np.ndarray]:
    """Returns the components of all features, sorted, (C,), and the number of the feature that each is of, (C,)."""
    every = [components for _, _, components in features] or [np.zeros(0, dtype=np.int64)]
    flat, number = np.concatenate(every), np.repeat(np.arange(len(every)), [len(part) for part in every])
    order = np.argsort(flat, kind="stable")
    return flat[order], number[order]


def _features_of(ids: np.ndarray, features: list, holders: tuple[np.ndarray, np.ndarray]) -> tuple[Feature, ...]:
    """Returns the features that hold all atoms of a group: those of norm layers if there are any, else all.

    Args:
        ids: the component of each atom.
        features: as `_features` returns them.
        holders: as `_holders` returns them.
    """
    found = []
    begin, end = np.searchsorted(holders[0], ids[0], side="left"), np.searchsorted(holders[0], ids[0], side="right")
    for number in dict.fromkeys(holders[1][begin:end].tolist()):
        feature, order, components = features[number]
        left = np.searchsorted(components, ids, side="left")
        count = np.searchsorted(components, ids, side="right") - left
        if count.min() > 0 and count.min() == count.max():
            index = np.stack([order[left + k] for k in range(count[0])], axis=1)
            found.append(replace(feature, index=index))
    norms = tuple(f for f in found if f.norm)
    return norms or tuple(found)
