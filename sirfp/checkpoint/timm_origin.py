"""Finds out which network of timm a model is, so that its file can record it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..structure.plan import PruningPlan
from .origin import PREPROCESSING, Origin


def timm_origin(model: nn.Module, plan: PruningPlan | None) -> Origin | None:
    """Describes a network that `timm.create_model` has built, dense or pruned.

    The name that timm keeps in the model is tried: a network of this name, with the model's number of classes, must
    have the model's tensors after the plan. A network that was built with further options, such as other widths,
    therefore has no description.

    Args:
        model: the model.
        plan: the plan by which it was cut; None for a dense model.

    Returns:
        The description; None if the model is no network of timm as it is by default.
    """
    about = getattr(model, "pretrained_cfg", None)
    name = about.get("architecture") if isinstance(about, Mapping) else None
    classes = getattr(model, "num_classes", None)
    if not name or not isinstance(classes, int):
        return None
    try:
        import timm
        from timm.data import resolve_data_config

        usual: dict[str, Any] = resolve_data_config({}, model=model)
        with torch.device("meta"):
            dense = timm.create_model(name, num_classes=classes, in_chans=usual["input_size"][0])
    except Exception:  # any class: code of other libraries, which an unknown network may stop anywhere
        return None
    shapes = {key: list(tensor.shape) for key, tensor in dense.state_dict().items()}
    if plan and not _cut(shapes, plan):
        return None
    if shapes != {key: list(tensor.shape) for key, tensor in model.state_dict().items()}:
        return None
    known = {key: usual[key] for key in PREPROCESSING} if all(key in usual for key in PREPROCESSING) else {}
    colours = "RGB" if usual["input_size"][0] == 3 else ""
    return Origin(timm=name, num_classes=classes, colours=colours, preprocessing=known)


def _cut(shapes: dict[str, list[int]], plan: PruningPlan) -> bool:
    """Changes the shapes of a dense network's tensors to those after a plan; returns False if the plan does not fit."""
    for name in plan.new_biases:
        if f"{name}.weight" not in shapes:
            return False
        shapes.setdefault(f"{name}.bias", [shapes[f"{name}.weight"][0]])
    for cut in plan.cuts:
        for name, dim in cut.tensors:
            shape = shapes.get(name)
            if shape is None:
                continue  # a buffer that is not part of the state
            if dim >= len(shape) or shape[dim] != cut.size:
                return False
            shape[dim] = len(cut.keep)
    return True
