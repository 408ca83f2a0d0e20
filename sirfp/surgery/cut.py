"""Cuts a model by a plan: parameters, buffers, the attributes that hold a size, and the optimizer's state.

The model is not run, so a plan read from a file cuts a new dense model without example inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..errors import InputError
from ..network.attention import note_heads, refit_attention
from ..network.plain_tensors import plain_tensors, register_plain
from ..network.response_norm import POSITIONS, give_positions, new_positions, refit_response_norms
from ..network.sizes import check_sizes, is_size_key, set_sizes
from ..network.strided_pointwise import guard
from ..network.timm_attributes import announce, refit
from ..network.walk import walk, walk_names
from ..network.wrappers import on_plain_model
from ..structure.groups import ChannelGroups
from ..structure.plan import Cut, PruningPlan
from .earlier_cuts import earlier_plan, remember
from .module_sizes import refresh, sizes_of
from .stale_optimizers import mark_replaced


def cuts_for(found: ChannelGroups, keep: np.ndarray) -> tuple[Cut, ...]:
    """Returns the cuts of each tensor for a choice of atoms.

    Args:
        found: the model's groups.
        keep: the atoms to keep, (atoms,) of bool, in the order of the groups.

    Returns:
        One cut for all tensors that keep the same indices. Dimensions that lose nothing have no cut.
    """
    removed: dict[tuple[str, int], list[np.ndarray]] = {}
    for group in found:
        gone = ~keep[found.spans[group.name]]
        if gone.any():
            for piece in group.slices:
                removed.setdefault((piece.tensor, piece.dim), []).append(piece.index[gone].reshape(-1))
    sizes = {(tensor, dim): found.sizes[tensor][dim] for tensor, dim in removed}
    for module, atoms in found.positions.items():
        lost = np.flatnonzero(~np.append(keep, True)[atoms])
        if len(lost):
            place = f"{module}.{POSITIONS}".lstrip("."), 0
            removed[place], sizes[place] = [lost], len(atoms)
    joined: dict[tuple, list[tuple[str, int]]] = {}
    known: dict[tuple[int, bytes], list[tuple[str, int]]] = {}  # the same lists, by size and removed indices
    for (tensor, dim), pieces in removed.items():
        size, lost = sizes[tensor, dim], np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        key = size, lost.tobytes()
        if key not in known:
            left = np.ones(size, dtype=bool)
            left[lost] = False
            known[key] = joined.setdefault((size, tuple(np.flatnonzero(left).tolist())), [])
        known[key].append((tensor, dim))
    return tuple(Cut(tuple(places), size, indices) for (size, indices), places in joined.items())


@on_plain_model
def apply(model: nn.Module, plan: PruningPlan, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Cuts a dense model by a plan, in place. The model remembers the plan.

    Args:
        model: the dense model that the plan was made for.
        plan: the plan.
        optimizer: its state (such as momentum) is cut together with the parameters.

    Raises:
        InputError: the plan was made for another model. The model is then unchanged.
    """
    before = earlier_plan(model)
    cut_by(model, plan, optimizer)
    remember(model, before.then(plan) if before else plan)


def cut_by(model: nn.Module, plan: PruningPlan, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Does the same as `apply`, but the model does not remember the plan: for copies on which cuts are tried.

    Args:
        model, plan, optimizer: as in `apply`; the model has no wrapper.

    Raises:
        InputError: the plan was made for another model. The model is then unchanged.
    """
    pieces, given, positions = _fitting(model, plan)
    register_plain(model, pieces)
    modules = dict(walk(model))
    note_heads(model)
    for name in given:
        give_bias(modules[name], optimizer)
    for module, size in positions:
        give_positions(module, size, next((p.device for p in model.parameters()), torch.device("cpu")))
    _cut_tensors(model, pieces, optimizer)
    for name, features in plan.widths.items():
        if name in modules and isinstance(getattr(modules[name], "_out_feature_channels", None), dict):
            modules[name]._out_feature_channels.update({f: n for f, n in features.items() if not is_size_key(f)})
        elif name in modules:
            announce(modules[name], features)
    refit(model)
    refit_attention(model)
    refit_response_norms(model)
    for name, features in plan.widths.items():
        if name in modules:
            set_sizes(modules[name], features)
    guard(model)


def _fitting(
    model: nn.Module, plan: PruningPlan
) -> tuple[dict[str, list[tuple[int, tuple[int, ...]]]], tuple[str, ...], list[tuple[nn.Module, int]]]:
    """Checks that a plan fits a model.

    Returns:
        The kept indices of each tensor that is cut, {name: [(dimension, indices)]}, the modules that are given a bias,
        and those that are given positions (`sirfp.network.response_norm`), with their numbers of channels.

    Raises:
        InputError: see `apply`.
    """
    state = {**walk_names(model), **plain_tensors(model)}
    norms = new_positions(model)
    plan = plan.fitting({*state, *norms})
    first = {id(tensor): name for name, tensor in reversed(state.items())}  # a shared tensor is cut once
    modules = dict(walk(model))
    given = tuple(name for name in dict.fromkeys(plan.new_biases) if f"{name}.bias" not in state)
    for name in given:
        if not isinstance(getattr(modules.get(name), "weight", None), torch.Tensor):
            raise InputError(f"the plan is for another model: this one has no {name!r} with a weight")
    for name, widths in plan.widths.items():
        if name in modules:
            check_sizes(name, modules[name], widths)
    pieces: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    positions: dict[int, tuple[nn.Module, int]] = {}
    for cut in plan.cuts:
        for name, dim in cut.tensors:
            if name in state:
                shape, known = tuple(state[name].shape), first[id(state[name])]
            elif name.removesuffix(".bias") in given and name.endswith(".bias"):
                shape, known = tuple(modules[name.removesuffix(".bias")].weight.shape[:1]), name
            elif name in norms:
                shape, known = (cut.size,), name
                positions[id(norms[name])] = norms[name], cut.size
            else:
                raise InputError(f"the plan is for another model: this one has no {name!r}")
            if dim >= len(shape) or shape[dim] != cut.size:
                raise InputError(
                    f"the plan is for another model: {name!r} has shape {shape}, expected size {cut.size} "
                    f"in dimension {dim}"
                )
            if dim in [d for d, _ in pieces.setdefault(known, [])]:
                raise InputError(f"the plan is broken: it cuts dimension {dim} of {name!r} twice")
            pieces[known].append((dim, cut.keep))
    return pieces, given, list(positions.values())


def _cut_tensors(model: nn.Module, cuts: Mapping[str, list], optimizer: torch.optim.Optimizer | None) -> None:
    modules = walk(model)
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for _, module in modules:
        for table in (module._parameters, module._buffers):
            for leaf, tensor in table.items() if table else ():
                if tensor is not None:
                    owners.setdefault(id(tensor), []).append((module, leaf))
    by_name = dict(modules)
    old = {name: _tensor(model, by_name, name) for name in cuts}
    parametrized = [m for _, m in modules if "parametrizations" in m._modules and is_parametrized(m)]
    old_sizes = {id(m): sizes_of(m) for m in parametrized}
    for module, _ in (owner for tensor in old.values() for owner in owners[id(tensor)]):
        if id(module) not in old_sizes:
            old_sizes[id(module)] = sizes_of(module)
    touched: dict[int, tuple[nn.Module, dict[str, list]]] = {}
    replaced: dict[nn.Parameter, tuple[nn.Parameter, list]] = {}
    indices: dict[int, torch.Tensor] = {}
    for name, pieces in cuts.items():
        tensor = old.pop(name)
        with torch.no_grad():
            new = _select(tensor.detach(), pieces, indices)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            if optimizer is not None:  # without an optimizer, each dense tensor is freed when it is cut
                replaced[tensor] = (new, pieces)
        for attribute, value in tensor.__dict__.items():  # that other code set, such as timm's `group_name` and `hess`
            along = isinstance(value, torch.Tensor) and value.shape == tensor.shape and value.dim() > 0
            new.__dict__[attribute] = _select(value.detach(), pieces, indices) if along else value
        if isinstance(tensor, nn.Parameter):
            mark_replaced(tensor)
        for module, leaf in owners[id(tensor)]:
            own: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            own[leaf] = new
            touched.setdefault(id(module), (module, {}))[1][leaf] = pieces
    for key, (module, gone) in touched.items():
        refresh(module, old_sizes[key], gone)
    for module in parametrized:  # the cut tensors of a parametrized layer belong to its parametrizations
        of_weight = getattr(module.parametrizations, "weight", None)
        refresh(module, old_sizes[id(module)], touched.get(id(of_weight), (None, {}))[1])
    if optimizer is not None:
        _cut_optimizer(optimizer, replaced)


def _tensor(model: nn.Module, modules: Mapping[str, nn.Module], name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(modules[owner] if owner in modules else model.get_submodule(owner), leaf)


def _select(
    tensor: torch.Tensor, pieces: Iterable[tuple[int, tuple[int, ...]]], indices: dict[int, torch.Tensor] | None = None
) -> torch.Tensor:
    """Selects kept indices.

    Args:
        tensor: the tensor.
        pieces: (dimension, kept indices) of each dimension that is cut.
        indices: kept indices as tensors, by the identity of their tuples, which live as long; it is filled.
    """
    known = {} if indices is None else indices
    format_ = torch.channels_last if _is_channels_last(tensor) else torch.contiguous_format
    for dim, keep in sorted(pieces, key=lambda piece: len(piece[1]) / tensor.shape[piece[0]]):
        if id(keep) not in known:
            known[id(keep)] = torch.tensor(keep, device=tensor.device)
        tensor = tensor.index_select(dim, known[id(keep)].to(tensor.device))
    return tensor.contiguous(memory_format=format_)


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def give_bias(module: Any, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Gives a convolution or linear layer a bias of zeros, (O,), and adds it to the optimizer (`_group_of_bias`)."""
    weight = module.weight
    module.bias = nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device))
    if optimizer is not None:
        for group in optimizer.param_groups:
            if any(p is weight for p in group["params"]):
                _group_of_bias(optimizer, group)["params"].append(module.bias)
                if hasattr(weight, "hess"):  # timm's Adahessian prepares its parameters when it is made
                    module.bias.hess, optimizer.state[module.bias] = 0.0, {"hessian step": 0}
                break


def _group_of_bias(optimizer: torch.optim.Optimizer, of_weight: dict[str, Any]) -> dict[str, Any]:
    """Returns the optimizer group for the new bias of a weight.

    Many optimizers have separate groups for parameters of one dimension (biases and norms), which are not decayed. The
    bias joins such a group, of the nearest learning rate. If the weight's group has parameters of one dimension, or if
    no group has them alone, the bias joins the weight's group.
    """

    def separate(group: dict[str, Any]) -> bool:
        return bool(group["params"]) and all(p.dim() <= 1 for p in group["params"])

    if any(p.dim() <= 1 for p in of_weight["params"]):
        return of_weight
    rate = float(of_weight.get("lr", 0))
    vectors = [group for group in optimizer.param_groups if separate(group)]
    return min(vectors, key=lambda group: abs(float(group.get("lr", 0)) - rate), default=of_weight)


def _cut_optimizer(optimizer: torch.optim.Optimizer, replaced: Mapping) -> None:
    for inner in vars(optimizer).values():  # a wrapper, such as Lookahead, holds another optimizer
        if isinstance(inner, torch.optim.Optimizer):
            _cut_optimizer(inner, replaced)
    for group in optimizer.param_groups:
        group["params"] = [replaced[p][0] if p in replaced else p for p in group["params"]]
    for old, (new, pieces) in replaced.items():
        if old not in optimizer.state:
            continue
        state = optimizer.state.pop(old)
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == old.shape and value.dim() > 0:
                state[key] = _select(value, pieces)
        if all(not isinstance(v, torch.Tensor) or v.dim() == 0 or v.shape == new.shape for v in state.values()):
            optimizer.state[new] = state  # factored statistics cannot be cut, so they are reset
