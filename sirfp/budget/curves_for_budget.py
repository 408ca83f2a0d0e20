"""Measures loss curves where a budget needs them, and nowhere else.

Most of the time goes into running copies of the network, one for each width of each group. Two things save runs without
changing which widths are best:

- A plan of widths that were measured has a loss, the sum of its groups'. A group that alone loses more at some width
  cannot be narrower in the best plan, so that its smaller widths are not measured. (Losses fall with the width, and are
  added.)
- Between few widths, curves are interpolated. A search over interpolated curves finds the widths at which they are too
  low. Just these are measured too, and the widths are chosen again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from ..errors import InputError
from ..processes import decide_once
from ..structure.plan import PruningPlan
from .curve import Curve
from .curves import LEVELS, CurveMeter, widths_near
from .limits import DEFAULT, Limits
from .target import ChooseWidths, Target

ROUNDS = 3
"""Number of rounds in which the widths that the curves suggest are measured. docs/choices.md compares."""
NEAR = 0.1
"""A suggested width is measured unless a measured one is this near, as a share of the atoms kept and of those
removed."""


def curves_for_budget(
    model: nn.Module,
    example_inputs: Any,
    target: Target,
    meter: CurveMeter,
    levels: Iterable[float] = LEVELS,
    limits: Limits = DEFAULT,
    before: PruningPlan | None = None,
) -> dict[str, Curve]:
    """Measures the loss curves of all groups as far as the choice of widths for a budget needs them.

    In a distributed run all processes measure the same widths, those that the first process finds.

    Args:
        model: the model to prune. It is not changed.
        example_inputs: inputs of the model, for timing layers.
        target, limits, before: as in `sirfp.budget.decision.decide`.
        meter: measures losses of the model's groups.
        levels: the shares of a group's channels to begin with.

    Returns:
        {group: its curve}.

    Raises:
        InputError: the budget is out of reach.
    """
    choose = target.chooser(model, example_inputs, meter.found, limits, before)
    shares = sorted(levels, reverse=True)
    half = -(-len(shares) // 2)
    curves = meter.measure({group.name: widths_near(group, limits, shares[:half]) for group in meter.found})
    most = decide_once(partial(_attained, choose, curves, limits))
    rest = {group.name: widths_near(group, limits, shares[half:]) for group in meter.found}
    _add(meter, curves, {name: w for name, w in rest.items() if curves[name].losses[0] <= most}, most)
    for _ in range(ROUNDS):
        chosen = decide_once(partial(choose, curves))
        free = {name: width for name, width in chosen.items() if name not in limits.widths}
        _add(meter, curves, {name: [width] for name, width in free.items() if not _is_near(width, curves[name])})
    meter.log()
    return curves


def _attained(choose: ChooseWidths, curves: Mapping[str, Curve], limits: Limits) -> float:
    """Returns the loss of the best plan of measured widths; infinite if none meets the budget.

    Partitions must each save the same share, so that what one loses is no bound for the others: it is infinite too.
    """
    if tuple(limits.partitions) != tuple(DEFAULT.partitions):
        return math.inf
    try:
        widths = choose(curves, measured=True)
    except InputError:  # out of reach of these widths
        return math.inf
    return sum(curves[name].at(width) for name, width in widths.items() if name not in limits.widths)


def _add(
    meter: CurveMeter, curves: dict[str, Curve], widths: Mapping[str, Sequence[int]], enough: float = math.inf
) -> None:
    """Measures widths that are not measured yet and adds them to the curves."""
    new = {name: [width for width in each if width not in curves[name].widths] for name, each in widths.items()}
    new = {name: each for name, each in new.items() if each}
    if new:
        for name, curve in meter.measure(new, enough, "measuring more of the loss curves").items():
            curves[name] = curves[name].joined(curve)


def _is_near(width: int, curve: Curve) -> bool:
    """True if a measured width differs by at most the share `NEAR` of what is kept and of what is removed."""
    return min(abs(width - one) for one in curve.widths) <= NEAR * min(width, curve.size - width)
