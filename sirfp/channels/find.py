"""Channel groups of any model: what must be cut together, found by one real forward pass.

The pass (`sirfp.tracing`) labels every channel and ties those that must stay or go together. Here the
tied labels become *atoms*, the slices of parameters and buffers that vanish together; atoms that touch
the same tensors form a *group* and compete with one another. What the outside sees, what meets an
operation without a rule, and what fails when a copy is cut and run, is frozen, with the reason.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError, near
from ..network.branches import training_only, within
from ..network.detectron import feature_widths, training_inputs
from ..network.forward import call, inference, is_detectron_input, tensors, training_branches
from ..network.proposals import fixed_proposals
from ..structure.cost import Cost
from ..structure.groups import ChannelGroups, Emission, Feature, Frozen, Group, Slice, Statistic
from ..tracing import ChannelTrace
from ..tracing.outputs import Outputs, channel_dim

logger = logging.getLogger(__name__)


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters and floating-point buffers by name, shared ones once."""
    state = dict(model.named_parameters())
    state.update((n, b) for n, b in model.named_buffers() if b.is_floating_point())
    return state


def find_groups(
    model: nn.Module, example_inputs: Any, ignore: Iterable[str] = (), *, trial: bool = True
) -> ChannelGroups:
    """Finds the channel groups of a model by following its channels through a forward pass.

    Args:
        model: any module; it is left as it was.
        example_inputs: what it is called with (a tensor, a tuple, a mapping, or Detectron2's list[dict]).
        ignore: names or patterns (`backbone.stem*`) of modules or tensors whose channels all stay.
        trial: whether to cut a copy and run it, and freeze the groups that the copy cannot run without.

    Returns:
        The groups, with what is frozen and why.

    Raises:
        InputError: if a name in `ignore` matches nothing in the model, or the model returns no tensor.
    """
    state = state_tensors(model)
    trace = ChannelTrace(state, [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.GroupNorm)])
    widths, outputs = feature_widths(model, trace), Outputs(model, trace)
    with inference(model), fixed_proposals(model), widths, outputs, trace:
        output = call(model, example_inputs)
    returned = [t for _, t in tensors(output)]
    if not returned:
        raise InputError(
            f"the model returns no tensor, but {type(output).__name__}, so the widths that must stay are not known; "
            "wrap it in a module that returns its tensors"
        )
    trace.freeze_tensors(returned, "it is the model's output")
    _follow_training(model, example_inputs, trace, state)
    branches = training_only(model)
    _keep(model, trace, state, branches, "it runs only in training")
    _ignore(model, trace, state, ignore)
    found = _build(model, trace, state, widths.found, outputs.dims)
    if trial and found.groups:
        from .trial import runs_without

        found = runs_without(model, example_inputs, output, found)
    return found


def find_again(model: nn.Module, example_inputs: Any, ignore: Iterable[str], found: ChannelGroups) -> ChannelGroups:
    """The same groups on the model as it is now: training has changed what channels emit, not their structure."""
    from .trial import without

    now = find_groups(model, example_inputs, ignore, trial=False)
    known = {group.name for group in found}
    reasons = {f.name: f.reason for f in found.frozen}
    again = without(now, {g.name: reasons.get(g.name, "") for g in now if g.name not in known})
    parts = [[(s.tensor, s.dim, s.index.tolist()) for g in groups for s in g.slices] for groups in (again, found)]
    return again if parts[0] == parts[1] else found  # where values decide, the model may take another way


def _follow_training(model: nn.Module, inputs: Any, trace: ChannelTrace, state: dict) -> None:
    """Follows branches that run only in training; where they cannot run, what could feed them stays."""
    if any(name not in trace.touched for name, _ in model.named_parameters()):
        trace.counting = False
        try:
            given = training_inputs(model, inputs) if is_detectron_input(inputs) else inputs
            with training_branches(model), trace:
                output = call(model, given)
            trace.freeze_tensors([t for _, t in tensors(output)], "it is the model's output in training")
        except Exception as error:  # any failure of the user's own code is a reason, not an end
            logger.info("the training branches of the model could not be followed: %s", error)
    reading: dict[int, str] = {}
    for name in (name for name in state if name not in trace.touched):
        for dim in trace.state_dims[name]:
            trace.labels.freeze(dim, "the forward pass does not reach it")
        if state[name].dim() >= 2 and isinstance(state[name], nn.Parameter):
            module = model.get_submodule(name.rpartition(".")[0])
            reading.setdefault(state[name].shape[1] * getattr(module, "groups", 1), name)
    if reading:
        known = {id(d): d for tap in trace.taps for d in [tap.labels]}
        for dim in known.values():
            if len(dim) in reading:
                reason = f"{reading[len(dim)]}, which the forward pass does not reach, may read it"
                trace.labels.freeze(dim, reason)


def _ignore(model: nn.Module, trace: ChannelTrace, state: dict, ignore: Iterable[str]) -> None:
    for pattern in (ignore,) if isinstance(ignore, str) else ignore:
        if not _keep(model, trace, state, [pattern], f"IGNORE names {pattern}"):
            every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
            modules = {name.rpartition(".")[0] for name in every}
            raise InputError(f"IGNORE names {pattern!r}, which no module of the model matches{near(pattern, modules)}")


def _keep(model: nn.Module, trace: ChannelTrace, state: dict, patterns: Iterable[str], reason: str) -> bool:
    """Freezes what the modules or tensors of some patterns make; says whether there are any."""
    first = {id(tensor): name for name, tensor in state.items()}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    matched = {
        first[id(tensor)]
        for name, tensor in every
        for pattern in patterns
        if id(tensor) in first and (name == pattern or within(name, [pattern]) or fnmatch.fnmatchcase(name, pattern))
    }
    for name in sorted(matched):
        layer = isinstance(state[name], nn.Parameter) and _sides(state[name]) > 1
        for index, dim in enumerate(trace.state_dims[name]):
            if not layer or _makes(model, name, index, state[name]):
                trace.labels.freeze(dim, reason)
    return bool(matched)


def _build(model: nn.Module, trace: ChannelTrace, state: dict, widths: dict, outputs: dict) -> ChannelGroups:
    """Turns labels into atoms and groups."""
    component = trace.labels.components()
    total = int(component.max()) + 1 if len(component) else 0
    reason_of: dict[int, str] = {}
    for labels, reason in reversed(trace.labels.frozen):
        reason_of.update(dict.fromkeys(component[labels].tolist(), reason))
    fixed = np.zeros(total, dtype=bool)
    fixed[list(reason_of)] = True
    inexact: dict[int, str] = {}
    for labels, reason in trace.labels.inexact:
        inexact.update(dict.fromkeys(component[labels].tolist(), reason))

    # Every place of every component: (component, place) with place = (tensor, dim), and the index there.
    places, makes, rows = [], [], []
    for name in state:
        for dim, labels in enumerate(trace.state_dims[name]):
            if labels is not None:
                ids = component[labels]
                rows.append(np.stack([ids, np.full(len(ids), len(places)), np.arange(len(ids))], axis=1))
                places.append((name, dim))
                makes.append(_makes(model, name, dim, state[name]))
    table = np.concatenate(rows) if rows else np.zeros((0, 3), dtype=np.int64)
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    bounds = np.flatnonzero(np.diff(table[:, 0], prepend=-1, append=-1)) if len(table) else np.zeros(0, int)

    makers: dict[bytes, list] = {}
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        block = table[start:stop]
        makers.setdefault(block[:, 1].tobytes(), []).append(block)
    groups, frozen, atom_of, names = [], {}, np.full(total, -1), {}
    features = _features(model, trace, component, outputs)
    signatures = {key: np.frombuffer(key, dtype=np.int64) for key in makers}
    leads = {key: _lead(signature, places, makes) for key, signature in signatures.items()}
    for key, lead in sorted(leads.items(), key=lambda item: item[1]):  # in the order of the model
        signature, blocks = signatures[key], makers[key]
        name = places[lead][0].rpartition(".")[0] or places[lead][0]
        for block in (b for b in blocks if makes[lead] and fixed[b[0, 0]]):  # not kernel areas and the like
            at = (name, reason_of[int(block[0, 0])])
            frozen[at] = frozen.get(at, 0) + int((block[:, 1] == lead).sum())
        blocks = [b for b in blocks if not fixed[b[0, 0]]]
        if not blocks:
            continue
        first = int(np.flatnonzero(signature == lead)[0])
        blocks.sort(key=lambda b: b[first, 2])
        ids = np.array([b[0, 0] for b in blocks])
        atom_of[ids] = np.arange(len(ids)) + sum(g.size for g in groups)
        index = np.stack([b[:, 2] for b in blocks])
        slices = tuple(Slice(*places[p], index[:, signature == p]) for p in dict.fromkeys(signature.tolist()))
        names[name] = names.get(name, 0) + 1
        groups.append(
            Group(
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                place=places[lead],
                slices=slices,
                features=_features_of(ids, features),
                channels=tuple(index[:, first].tolist()),
                inexact=next((inexact[i] for i in ids.tolist() if i in inexact), None),
            )
        )
    by_tensor = {id(tensor): name for name, tensor in state.items()}
    norms = _own_norms(trace)
    emissions = tuple(
        Emission(
            by_tensor[id(c.weight)],
            atom_of[component[c.labels]],
            c.emitted,
            c.groups,
            by_tensor[id(norms[id(c)])] if id(c) in norms else None,
        )
        for c in trace.consumers
    )
    branches = training_only(model)
    parameters = [(p, trace.state_dims[n]) for n, p in model.named_parameters() if not within(n, branches)]
    return ChannelGroups(
        groups=tuple(groups),
        frozen=tuple(Frozen(name, n, reason) for (name, reason), n in frozen.items()),
        sizes={name: tuple(tensor.shape) for name, tensor in state.items()},
        cost=Cost.build(trace.products, parameters, atom_of, component, sum(g.size for g in groups)),
        emissions=emissions,
        statistics=tuple(
            Statistic(name, shape, tuple(None if d is None else atom_of[component[d]] for d in dims))
            for name, shape, dims in trace.statistics
        ),
        widths={m: {f: atom_of[component[d]] for f, d in v.items()} for m, v in widths.items()},
        branches=branches,
    )


def _own_norms(trace: ChannelTrace) -> dict[int, torch.Tensor]:
    """The running mean of the norm that alone reads a layer's output and reads no other's, by the layer's call."""
    weights: dict[int, set] = {}
    for mean, consumer in trace.normed:
        weights.setdefault(id(mean), set()).add(None if consumer is None else id(consumer.weight))
    return {
        id(consumer): mean
        for mean, consumer in trace.normed
        if consumer is not None and consumer.readers == 1 and len(weights[id(mean)]) == 1
    }


def _lead(signature: np.ndarray, places: list, makes: list[bool]) -> int:
    """The place that names a group: the first that makes channels rather than reads or scales them."""
    unique = dict.fromkeys(signature.tolist())
    return next((place for place in unique if makes[place]), next(iter(unique)))


def _makes(model: nn.Module, name: str, dim: int, tensor: torch.Tensor) -> bool:
    """Whether a dimension of a tensor is the output of its layer; a scale, as of shape (C, 1, 1), makes nothing."""
    module = model.get_submodule(name.rpartition(".")[0])
    weight = isinstance(tensor, nn.Parameter) and _sides(tensor) > 1
    return weight and dim == (1 if getattr(module, "transposed", False) else 0)


def _sides(tensor: torch.Tensor) -> int:
    return sum(n > 1 for n in tensor.shape)


def _features(
    model: nn.Module, trace: ChannelTrace, component: np.ndarray, outputs: dict
) -> list[tuple[Feature, np.ndarray, np.ndarray]]:
    """Every module output that shows channels, once, with its channels by component, and these components."""
    owner = {id(t): name.rpartition(".")[0] for name, t in state_tensors(model).items()}
    found = {}
    for tap in trace.taps:
        module = owner[id(tap.tensor)]
        if module not in found:
            ids = component[tap.labels]
            empty = np.zeros((0, 0), dtype=np.int64)
            dim = channel_dim(tap.dim, [None if d is None else component[d] for d in outputs.get(module, ())], ids)
            order = np.argsort(ids, kind="stable")
            found[module] = (Feature(module, tap.norm, dim, empty, tap.positions, len(ids)), order, ids[order])
    return list(found.values())


def _features_of(ids: np.ndarray, features: list) -> tuple[Feature, ...]:
    """The features that show all atoms of a group; norm layers where there are any."""
    found = []
    for feature, order, components in features:
        first = np.searchsorted(components, ids[0])
        if first == len(components) or components[first] != ids[0]:
            continue
        left = np.searchsorted(components, ids, side="left")
        count = np.searchsorted(components, ids, side="right") - left
        if count.min() > 0 and count.min() == count.max():
            index = np.stack([order[left + k] for k in range(count[0])], axis=1)
            found.append(replace(feature, index=index))
    norms = tuple(f for f in found if f.norm)
    return norms or tuple(found)
