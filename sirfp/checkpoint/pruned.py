"""Reads and writes pruned models: weights and plan in one safetensors file, without pickle."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import InputError
from ..files.nearby import nearby
from ..files.whole import whole_file
from ..network.branches import training_only, within
from ..network.plain_tensors import plain_tensors
from ..network.response_norm import new_positions
from ..network.wrappers import on_plain_model
from ..structure.plan import PruningPlan
from ..surgery.cut import apply
from ..surgery.earlier_cuts import check_whole, whole_plan
from .heads import announce_features, check_head, loadable, replace_head
from .origin import ORIGIN_KEY, Origin, unreadable
from .timm_origin import timm_origin

PLAN_KEY = "sirfp_plan"
"""Key of the plan in a file's metadata."""
OTHERS = (".pth", ".pt", ".ckpt", ".pkl", ".bin", ".onnx")
"""Endings of files of other formats, which a file of a pruned network must not have."""
CLASSES = (
    "is the number of classes the same? sirfp.load(path, model, head=CLASSES) gives the model another classifier, "
    "head=0 none; or load into the network of the file's classes, then replace its classifier (timm: "
    "model.reset_classifier)"
)
"""The end of messages on files that differ from the model."""


@on_plain_model
def save(
    path: str | os.PathLike, model: nn.Module, plan: PruningPlan | None = None, *, origin: Origin | None = None
) -> None:
    """Writes a pruned model's weights and its plan to one file, without branches that run only in training.

    Args:
        path: the file, usually `*.safetensors`; written under a temporary name and renamed when it is complete.
        model: the pruned model; a wrapped one is written with the plain names (`sirfp.network.wrappers`).
        plan: the plan that turned the dense model into this model. By default the plan that the model remembers, and
            no plan for a model that was never cut.
        origin: where the dense model comes from, so that commands need not be told (`sirfp report FILE`); by default
            found out for networks of timm.

    Raises:
        InputError: the file has no name or cannot be written, its ending is that of another format (`OTHERS`), or the
            plan is not the whole way from the dense model to this one.
    """
    _check_path(path)
    if Path(path).suffix in OTHERS:
        raise InputError(f"cannot write {path}: the file is of the format safetensors; give it the ending .safetensors")
    plan = whole_plan(model) if plan is None else plan
    if plan is not None:
        check_whole(model, plan)
    branches = training_only(model)
    state: dict[str, torch.Tensor] = {}
    seen: set[tuple] = set()
    for name, tensor in model.state_dict().items():
        # a tensor that several names share is stored under its first name
        if storage_key(tensor) not in seen and not within(name, branches):
            seen.add(storage_key(tensor))
            state[name] = tensor.detach().cpu().contiguous()
    metadata = {PLAN_KEY: plan.to_json()} if plan else {}
    origin = origin or timm_origin(model, plan)
    if origin:
        metadata[ORIGIN_KEY] = origin.to_json()
    with whole_file(path) as beside:
        try:
            save_file(state, str(beside), metadata=metadata)
        except SafetensorError as error:
            raise InputError(f"cannot write {path}: {error}") from None


def _check_path(path: object) -> None:
    """Raises InputError for a path that is none."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"the file must be named by a text or a Path, got {type(path).__name__}")


def storage_key(tensor: torch.Tensor) -> tuple:
    """Returns a key for the memory of a tensor, equal for tensors that share memory, such as tied weights."""
    return tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), id(tensor) if not tensor.numel() else 0


def read(path: str | os.PathLike) -> tuple[PruningPlan, dict[str, torch.Tensor]]:
    """Reads the file of a pruned model.

    Returns:
        The plan and {name: tensor}.

    Raises:
        InputError: the file is missing, truncated or altered, or was not written by `save`.
    """
    plan, state = read_safetensors(path)
    if plan is None:
        raise InputError(f"{path} holds no pruning plan: it was not written by sirfp.save or `sirfp prune`")
    return plan, state


def read_safetensors(path: str | os.PathLike) -> tuple[PruningPlan | None, dict[str, torch.Tensor]]:
    """Reads any safetensors file.

    Returns:
        The plan in the file, None if the file has none; and {name: tensor}.

    Raises:
        InputError: the file is missing, truncated or altered.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}{nearby(path)}")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(PLAN_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from None
    try:
        return (PruningPlan.from_json(text) if text else None), state
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


@on_plain_model
def load(path: str | os.PathLike, model: nn.Module, head: int | None = None) -> PruningPlan:
    """Turns a newly built, dense model into the pruned model of a file; runs no code from the file.

    A pruned classifier can become the backbone of another task. timm's networks take it as they were built: with other
    classes, without a classifier (`num_classes=0`), or as feature maps (`features_only=True`); a warning names the
    classifier that is not loaded. For other networks `head` says it.

    Args:
        path: a file that `save` has written.
        model: the dense model; changed in place. With `head` it may have any number of classes.
        head: the number of classes of a new, untrained layer in place of the one that makes the file's outputs; 0 to
            leave this layer out, so that the model returns the features before it; None for the file's own.

    Returns:
        The plan, without tensors that the model does not have. Its FLOPs and parameters are those of the file's model.

    Raises:
        InputError: the file is damaged or for another model (the model is then unchanged), or the head cannot be
            replaced.
    """
    _check_path(path)
    check_head(head)
    plan, state = read(path)
    try:
        fitting = loadable(model, plan, state, head, f"{path}")
        restore(model, fitting.plan, fitting.state, f"{path}", fitting.own)
    except InputError as error:
        if whole_plan(model) is None:
            raise
        raise InputError(f"{path} is for a dense model, and this one is pruned already: build it anew") from error
    announce_features(model, fitting.plan)
    if head is not None:
        replace_head(model, fitting.own, head)
    return fitting.plan


@on_plain_model
def restore(
    model: nn.Module,
    plan: PruningPlan | None,
    state: Mapping[str, torch.Tensor],
    source: str,
    own: Collection[str] = (),
) -> None:
    """Cuts a dense model by a plan, if one is given, and loads weights into the model.

    The plan and all weights are checked before the model is changed. Branches that run only in training are cut too.
    They keep their own weights, since files do not contain them.

    Args:
        model: the dense model; changed in place.
        plan: the plan; None to load weights only.
        state: {name: tensor} of the cut model.
        source: name of the file, for messages.
        own: modules that keep their own weights, which `state` lacks.

    Raises:
        InputError: plan or weights are for another model; the model is then unchanged.
    """
    dense = model.state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in dense.items()}
    if plan:
        _cut_shapes(shapes, plan.fitting({*dense, *new_positions(model)}), model, source)
    stored = {name for name in _stored_names(model, shapes) if not within(name, own)}
    _check_state(state, shapes, stored, source, getattr(model, "num_classes", None))
    if plan:
        apply(model, plan)
    now = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            now[name].copy_(tensor)


def _cut_shapes(shapes: dict[str, list[int]], plan: PruningPlan, model: nn.Module, source: str) -> None:
    """Replaces the shapes of a dense model's tensors by their shapes after the cut.

    Args:
        shapes: {name: shape} of the model's state dict; changed in place.
        plan: the plan, which may also cut buffers that are not in the state dict.
        model: the dense model.
        source: see `restore`.

    Raises:
        InputError: the plan names a tensor that the model lacks or that has another size in the model.
    """
    for name in plan.new_biases:
        if f"{name}.weight" not in shapes:
            raise InputError(f"{source} is for another model: this model has no {name!r}")
        shapes.setdefault(f"{name}.bias", [shapes[f"{name}.weight"][0]])
    others = {**dict(model.named_buffers()), **plain_tensors(model)}
    unsaved = {name: list(tensor.shape) for name, tensor in others.items() if name not in shapes}
    norms = new_positions(model)
    for cut in plan.cuts:
        for name, dim in cut.tensors:
            if name in norms:  # a dense network does not have them yet
                continue
            shape = shapes.get(name) or unsaved.get(name)
            if shape is None or dim >= len(shape) or shape[dim] != cut.size:
                found = "is missing" if shape is None else f"has shape {tuple(shape)}"
                hint = f"; {CLASSES}" if shape is None else ""
                raise InputError(
                    f"{source} is for another model: {name!r} {found}, expected {cut.size} in dimension {dim}{hint}"
                )
            shape[dim] = len(cut.keep)


def _stored_names(model: nn.Module, shapes: Iterable[str]) -> set[str]:
    """Returns the names of the tensors that a file must contain.

    A shared tensor is stored under its first name. Branches that run only in training are not stored.

    Args:
        model: the dense model.
        shapes: names of all tensors of the cut model, including new biases.
    """
    dense, branches = model.state_dict(), training_only(model)
    first_names: dict[tuple, str] = {}
    for name, tensor in dense.items():
        first_names.setdefault(storage_key(tensor), name)
    return {
        name
        for name in shapes
        if (name not in dense or first_names[storage_key(dense[name])] == name) and not within(name, branches)
    }


def _check_state(
    state: Mapping[str, torch.Tensor], shapes: Mapping[str, list[int]], stored: set[str], source: str, classes: object
) -> None:
    """Raises InputError if the weights do not fit the cut model.

    Args:
        state: {name: tensor} of the file.
        shapes: {name: shape} of the cut model; a tensor with another name or shape is an error.
        stored: names that `state` must contain.
        source: name of the file, for messages.
        classes: the model's number of classes, None where it does not say it.
    """
    missing, unknown = stored - set(state), set(state) - set(shapes)
    if missing:
        name, count = min(missing), len(missing)
        others = f" and {count - 1} other{'s' * (count > 2)}" if count > 1 else ""
        raise InputError(f"{source} is for another model or incomplete: it lacks {name!r}{others}")
    if unknown:
        name, count = min(unknown), len(unknown)
        raise InputError(
            f"{source} is for another model: this model has no {name!r} ({count} unknown in all); {CLASSES}"
        )
    differ = {name: (list(t.shape), shapes[name]) for name, t in state.items() if list(t.shape) != shapes[name]}
    if not differ:
        return
    name, (theirs, ours) = next(iter(differ.items()))
    outputs = {(a[0], b[0]) for a, b in differ.values() if a and b and a[1:] == b[1:]}
    if ours[:1] == [classes] and outputs == {(theirs[0], ours[0])}:  # the classifier's weight and bias
        raise InputError(
            f"{source} has {theirs[0]} classes, the model built has {ours[0]}: build it with {theirs[0]}; {CLASSES}"
        )
    raise InputError(f"{source}: {name!r} has shape {tuple(theirs)}, expected {tuple(ours)}; {CLASSES}")
