"""Cutting a model by a plan: parameters, buffers, the attributes that repeat a size, optimizer state.

Nothing runs here, so a plan read from a file turns a fresh dense model into the pruned one at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from .channels import ChannelGroups
from .errors import InputError
from .models.timm_attributes import announce, refit
from .plan import Cut, PruningPlan


def cuts_for(found: ChannelGroups, keep: np.ndarray) -> tuple[Cut, ...]:
    """What a choice of atoms means for each tensor.

    Args:
        found: the model's groups.
        keep: which atoms stay, (atoms,) of bool, in order of the groups.

    Returns:
        The cuts, tensors with the same indices together; only dimensions that lose something.
    """
    removed: dict[tuple[str, int], list[np.ndarray]] = {}
    for group in found:
        gone = ~keep[found.spans[group.name]]
        if gone.any():
            for piece in group.slices:
                removed.setdefault((piece.tensor, piece.dim), []).append(piece.index[gone].reshape(-1))
    joined: dict[tuple, list[tuple[str, int]]] = {}
    for (tensor, dim), pieces in removed.items():
        size = found.sizes[tensor][dim]
        left = np.ones(size, dtype=bool)
        left[np.concatenate(pieces)] = False
        joined.setdefault((size, tuple(np.flatnonzero(left).tolist())), []).append((tensor, dim))
    return tuple(Cut(tuple(places), size, indices) for (size, indices), places in joined.items())


def apply(model: nn.Module, plan: PruningPlan, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Cuts a dense model, in place, to what a plan leaves of it.

    Args:
        model: the model that the plan was made for, dense.
        plan: the plan.
        optimizer: its state (momentum and the like) is cut along with the parameters.

    Raises:
        InputError: if the model is not the one the plan was made for; it is left untouched then.
    """
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    plan = plan.fitting(state)
    given = [name for name in plan.new_biases if f"{name}.bias" not in state]
    modules = dict(model.named_modules())
    for cut in plan.cuts:
        for name, dim in cut.tensors:
            owner, _, leaf = name.rpartition(".")
            if owner in given and leaf == "bias":
                continue
            if name not in state:
                raise InputError(f"the plan is for another model: this one has no {name!r}")
            shape = tuple(state[name].shape)
            if dim >= len(shape) or shape[dim] != cut.size:
                raise InputError(
                    f"the plan is for another model: {name!r} here is {shape}, not {cut.size} in dim {dim}"
                )
    for name in given:
        if not isinstance(getattr(modules.get(name), "weight", None), torch.Tensor):
            raise InputError(f"the plan is for another model: this one has no {name!r} with a weight")
    for name in given:
        give_bias(modules[name], optimizer)
    by_tensor: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    for cut in plan.cuts:
        for name, dim in cut.tensors:
            by_tensor.setdefault(name, []).append((dim, cut.keep))
    _cut_tensors(model, by_tensor, optimizer)
    for name, features in plan.widths.items():
        if name in modules and isinstance(getattr(modules[name], "_out_feature_channels", None), dict):
            modules[name]._out_feature_channels.update(features)
        elif name in modules:
            announce(modules[name], features)
    refit(model)


def _cut_tensors(model: nn.Module, cuts: Mapping[str, list], optimizer: torch.optim.Optimizer | None) -> None:
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                owners.setdefault(id(tensor), []).append((module, leaf))
    old_sizes = {id(m): _sizes(m) for m in model.modules()}
    touched: dict[int, nn.Module] = {}
    replaced: dict[nn.Parameter, tuple[nn.Parameter, list]] = {}
    for name, pieces in cuts.items():
        tensor = _tensor(model, name)
        with torch.no_grad():
            new = _select(tensor.detach(), pieces)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            replaced[tensor] = (new, pieces)
        for module, leaf in owners[id(tensor)]:
            table = module._parameters if leaf in module._parameters else module._buffers
            table[leaf] = new
            touched[id(module)] = module
    for key, module in touched.items():
        refresh(module, old_sizes[key])
    if optimizer is not None:
        _cut_optimizer(optimizer, replaced)


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def _select(tensor: torch.Tensor, pieces: Iterable[tuple[int, tuple[int, ...]]]) -> torch.Tensor:
    format_ = torch.channels_last if _is_channels_last(tensor) else torch.contiguous_format
    for dim, keep in pieces:
        tensor = tensor.index_select(dim, torch.tensor(keep, device=tensor.device))
    return tensor.clone(memory_format=format_)


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def give_bias(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Gives a convolution or linear layer a bias of zeros, as wide as its output."""
    weight = module.weight
    module.bias = nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device))
    if optimizer is not None:
        for group in optimizer.param_groups:
            if any(p is weight for p in group["params"]):
                group["params"].append(module.bias)


def _cut_optimizer(optimizer: torch.optim.Optimizer, replaced: Mapping) -> None:
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
            optimizer.state[new] = state  # factored statistics cannot be cut and start anew


def _sizes(module: nn.Module) -> dict[str, int]:
    """The sizes that a module's attributes repeat, before the cut."""
    names = ("in_channels", "out_channels", "groups", "num_channels", "num_groups")
    return {n: getattr(module, n) for n in names if isinstance(getattr(module, n, None), int)}


def refresh(module: nn.Module, old: Mapping[str, int]) -> None:
    """Sets the attributes of a module that repeat a size, from its tensors as they are now."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.dim() >= 3 and "in_channels" in old and "out_channels" in old:
        transposed = bool(getattr(module, "transposed", False))
        groups = old.get("groups", 1)
        if groups > 1 and groups == old["in_channels"]:
            first = weight.shape[0]
            groups = first if transposed else first * groups // old["out_channels"]
        if "groups" in old:
            module.groups = groups
        a, b = weight.shape[0], weight.shape[1] * groups
        module.in_channels, module.out_channels = (a, b) if transposed else (b, a)
    elif isinstance(weight, torch.Tensor) and weight.dim() == 2 and isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.GroupNorm) or "num_groups" in old:
        if old.get("num_groups") == old.get("num_channels"):
            module.num_groups = weight.shape[0]
        module.num_channels = weight.shape[0]
    if isinstance(getattr(module, "normalized_shape", None), tuple) and isinstance(weight, torch.Tensor):
        module.normalized_shape = tuple(weight.shape)
    if isinstance(getattr(module, "num_features", None), int):
        vector = getattr(module, "running_mean", None)
        vector = weight if vector is None else vector
        if isinstance(vector, torch.Tensor) and vector.dim() == 1:
            module.num_features = len(vector)
