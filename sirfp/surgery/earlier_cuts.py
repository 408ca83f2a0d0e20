"""Remembers in a model the plan that leads from the dense model to it, so that further cuts and files continue it."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from ..errors import InputError
from ..structure.plan import PruningPlan

PLAN = "_sirfp_plan"
"""Attribute of a cut model: its whole plan as JSON. Copies and pickles keep it, and reading them needs no sirfp."""

OTHER_INPUTS = 0.01
"""Relative difference of FLOPs above which the example inputs are taken to be others than those of the earlier plan."""

logger = logging.getLogger(__name__)


def whole_plan(model: nn.Module) -> PruningPlan | None:
    """Returns the plan that a model remembers, even if the model was changed since; None if it was never cut."""
    text = vars(model).get(PLAN)
    return PruningPlan.from_json(text) if text else None


def earlier_plan(model: nn.Module) -> PruningPlan | None:
    """Returns the plan of all cuts of a model so far; None if it is dense.

    A warning says if the model was changed after its last cut, so that the plan does not lead to it. It then counts as
    dense.
    """
    plan = whole_plan(model)
    differs = _difference(model, plan) if plan else ""
    if differs:
        logger.warning(
            "The model was changed after it was pruned (%s), so that it counts as dense from now on", differs
        )
        vars(model).pop(PLAN)
        return None
    return plan


def remember(model: nn.Module, plan: PruningPlan) -> None:
    """Sets the plan of all cuts of a model."""
    vars(model)[PLAN] = plan.to_json()


def for_inputs(plan: PruningPlan, flops: int) -> PruningPlan:
    """Returns a plan with the FLOPs of other example inputs, to which those of the dense model are scaled.

    Args:
        plan: the plan of all cuts of a model so far.
        flops: the model's FLOPs on the present example inputs. If they are the plan's, it is returned as it is.
    """
    dense, pruned = plan.flops
    if not pruned or abs(flops / pruned - 1) <= OTHER_INPUTS:
        return plan
    logger.info("The example inputs are not those of the earlier plan: its FLOPs are scaled to these inputs")
    return replace(plan, flops=(round(dense * flops / pruned), flops))


def check_whole(model: nn.Module, plan: PruningPlan) -> None:
    """Raises InputError if a plan does not lead from the dense model to this one, because it is one of several."""
    differs = _difference(model, plan)
    if differs:
        raise InputError(
            f"the plan does not lead to this model: {differs}; give the plan of "
            "this model, or join its plans, first.then(second)"
        )
    whole = whole_plan(model)
    if whole is None or _difference(model, whole):
        return
    own = {place: cut.size for cut in plan.cuts for place in cut.tensors}
    for name, dim, size in ((*place, cut.size) for cut in whole.cuts for place in cut.tensors):
        if own.get((name, dim)) != size:
            begins = f"begins with {own[name, dim]}" if (name, dim) in own else "does not cut it"
            raise InputError(
                f"the model was cut by several plans: dimension {dim} of {name!r} had size {size} in the dense model, "
                f"this plan {begins}; save without a plan to use the whole one, or join them, first.then(second)"
            )


def _difference(model: nn.Module, plan: PruningPlan) -> str:
    """Returns where a model's sizes are not those that a plan leaves, in words; "" if they are all the same."""
    state: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state |= dict(model.named_buffers(remove_duplicate=False))
    for cut in plan.cuts:
        for name, dim in cut.tensors:
            if name not in state:
                continue
            shape = () if nn.parameter.is_lazy(state[name]) else tuple(state[name].shape)
            if len(shape) <= dim or shape[dim] != len(cut.keep):
                return f"it leaves {len(cut.keep)} of dimension {dim} of {name!r}, which has the shape {shape}"
    return ""
