"""Measures loss curves where it matters: at the widths that the curves so far suggest.

Curves are measured at a few shares of the channels and interpolated in between. A search over interpolated curves finds
the widths at which they are too low. Measuring just these widths, and choosing again, corrects that at the cost of one
point for each curve and round.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from ..criteria import Criterion
from ..moments import Moments
from ..processes import decide_once
from ..structure.groups import ChannelGroups
from ..structure.plan import PruningPlan
from .curve import Curve
from .evidence import Evidence
from .limits import DEFAULT, Limits
from .target import Target

ROUNDS = 2
"""Number of rounds. docs/choices.md compares."""


def finer_curves(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    criterion: Criterion,
    target: Target,
    evidence: Evidence,
    moments: Moments | None,
    curves: Mapping[str, Curve],
    limits: Limits = DEFAULT,
    before: PruningPlan | None = None,
) -> dict[str, Curve]:
    """Adds measured points to loss curves, at the widths that the curves suggest for a budget.

    In a distributed run all processes measure the same widths, those that the first process finds.

    Args:
        model: the model to prune. It is not changed.
        found, criterion, target, limits, before: as in `sirfp.budget.decision.decide`.
        example_inputs: inputs of the model, for timing layers.
        evidence, moments: what the curves were measured with.
        curves: the loss curve of each group.

    Returns:
        {group: its curve with up to `ROUNDS` more points}.

    Raises:
        InputError: the budget is out of reach.
    """
    finer = dict(curves)
    for _ in range(ROUNDS):
        chosen = decide_once(partial(target.likely_widths, model, example_inputs, found, finer, limits, before))
        free = ((name, width) for name, width in chosen.items() if name not in limits.widths)
        wanted = {name: [width] for name, width in free if width not in finer[name].widths}
        more = evidence.curves(model, found, criterion, moments, limits, wanted) if wanted else None
        if not more:
            break
        finer |= {name: finer[name].joined(curve) for name, curve in more.items()}
    return finer
