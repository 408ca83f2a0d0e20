"""Remembers in a model what was cut from it, so that a file is not written with the last of several plans alone."""

from __future__ import annotations

from torch import nn

from ..errors import InputError
from ..structure.plan import PruningPlan

DENSE_SIZES = "_sirfp_dense_sizes"
"""Attribute of a cut model: {(tensor, dimension): its size before the first cut}. Copies and pickles keep it."""


def remember(model: nn.Module, plan: PruningPlan) -> None:
    """Notes the sizes that a plan cuts; sizes from before earlier cuts stay."""
    sizes = vars(model).setdefault(DENSE_SIZES, {})
    for cut in plan.cuts:
        for place in cut.tensors:
            sizes.setdefault(place, cut.size)


def check_whole(model: nn.Module, plan: PruningPlan) -> None:
    """Raises InputError if a plan does not lead from the dense model to this one, because it is one of several."""
    state = model.state_dict()
    for cut in plan.cuts:
        for name, dim in cut.tensors:
            if name in state and state[name].shape[dim] != len(cut.keep):
                raise InputError(
                    f"the plan does not lead to this model: it leaves {len(cut.keep)} of dimension {dim} of {name!r}, "
                    f"the model has {state[name].shape[dim]}; give the plan of this model, or join its plans, "
                    "first.then(second)"
                )
    own = {place: cut.size for cut in plan.cuts for place in cut.tensors}
    for place, size in vars(model).get(DENSE_SIZES, {}).items():
        if own.get(place) != size:
            name, dim = place
            begins = f"begins with {own[place]}" if place in own else "does not cut it"
            raise InputError(
                f"the model was cut by several plans: dimension {dim} of {name!r} had size {size} in the dense model, "
                f"this plan {begins}; join all plans in their order, first.then(second), and save with the joined plan"
            )
