"""Pruned models as files: weights and plan in one safetensors file, no pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import InputError
from ..files.whole import whole_file
from ..network.branches import training_only, within
from ..structure.plan import PruningPlan
from ..surgery.cut import apply

PLAN_KEY = "sirfp_plan"


def save(path: str | os.PathLike, model: nn.Module, plan: PruningPlan | None) -> None:
    """Writes a pruned model's weights and its plan to one file, without branches that run only in training.

    Args:
        path: the file, by custom `*.safetensors`; written beside and renamed.
        model: the pruned model.
        plan: the plan that made it from the dense model; None for a dense model.
    """
    state, seen, branches = {}, set(), training_only(model)
    for name, tensor in model.state_dict().items():
        # a shared tensor is stored under its first name
        if id_of(tensor) not in seen and not within(name, branches):
            seen.add(id_of(tensor))
            state[name] = tensor.detach().cpu().contiguous()
    with whole_file(path) as beside:
        try:
            save_file(state, str(beside), metadata={PLAN_KEY: plan.to_json()} if plan else {})
        except SafetensorError as error:
            raise InputError(f"cannot write {path}: {error}") from None


def id_of(tensor: torch.Tensor) -> tuple:
    """What tells one stored tensor from another: its memory and its place in it."""
    return tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), id(tensor) if not tensor.numel() else 0


def read(path: str | os.PathLike) -> tuple[PruningPlan, dict[str, torch.Tensor]]:
    """Reads a pruned file.

    Returns:
        The plan and the weights by name.

    Raises:
        InputError: if it is missing, cut short, altered, or not a file of `save`.
    """
    plan, state = read_safetensors(path)
    if plan is None:
        raise InputError(f"{path} holds no pruning plan: it was not written by sirfp.save or `sirfp prune`")
    return plan, state


def read_safetensors(path: str | os.PathLike) -> tuple[PruningPlan | None, dict[str, torch.Tensor]]:
    """Reads any safetensors file: its plan, if it has one, and its weights by name.

    Raises:
        InputError: if it is missing, cut short or altered.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(PLAN_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); copy or make it again") from None
    try:
        return (PruningPlan.from_json(text) if text else None), state
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def load(path: str | os.PathLike, model: nn.Module) -> PruningPlan:
    """Turns a freshly built, dense model into the pruned one of a file; runs nothing.

    Args:
        path: a file of `save`.
        model: the dense model; changed in place.

    Returns:
        The plan.

    Raises:
        InputError: if the file is broken or for another model; the model is left as it was.
    """
    plan, state = read(path)
    restore(model, plan, state, f"{path}")
    return plan


def restore(model: nn.Module, plan: PruningPlan | None, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Cuts a dense model by a plan, if there is one, and fills it with weights, after checking that all fit.

    A branch that runs only in training is cut to fit; the file does not hold its weights, so it keeps its own.
    """
    full, branches = model.state_dict(), training_only(model)
    plan = plan.fitting(full) if plan else None
    names: dict[tuple, str] = {}
    for name, tensor in full.items():
        names.setdefault(id_of(tensor), name)
    shapes = {name: list(tensor.shape) for name, tensor in full.items()}
    for name in plan.new_biases if plan else ():
        if f"{name}.weight" not in shapes:
            raise InputError(f"{source} is for another model: this one has no {name!r}")
        shapes.setdefault(f"{name}.bias", [shapes[f"{name}.weight"][0]])
    unsaved = {name: list(b.shape) for name, b in model.named_buffers() if name not in full}
    for cut in plan.cuts if plan else ():
        for name, dim in cut.tensors:
            shape = shapes.get(name) or unsaved.get(name)
            if shape is None or dim >= len(shape) or shape[dim] != cut.size:
                have = "is not there" if shape is None else f"is {tuple(shape)}"
                raise InputError(
                    f"{source} is for another model: {name!r} {have}, wanted {cut.size} in dimension {dim}"
                )
            shape[dim] = len(cut.keep)
    stored = {n for n in shapes if n not in full or names[id_of(full[n])] == n}
    stored -= {n for n in stored if within(n, branches)}
    for problem, odd in (("lacks", stored - set(state)), ("has no", set(state) - set(shapes))):
        if odd:
            of = (
                f"{source} is for another model or not whole: it"
                if problem == "lacks"
                else f"{source} is for another model: this one"
            )
            raise InputError(f"{of} {problem} {min(odd)!r} ({len(odd)} such)")
    for name, tensor in state.items():
        if list(tensor.shape) != shapes[name]:
            raise InputError(f"{source}: {name!r} is {tuple(tensor.shape)}, the plan leaves {tuple(shapes[name])}")
    if plan:
        apply(model, plan)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
