"""The budgets of several cuts on the way to one: of the prunings of a run, and of the cuts of one pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..errors import InputError
from ..structure.plan import PruningPlan
from .limits import check_count
from .target import Target

GENTLE = 0.6
"""The share of the present FLOPs (parameters, latency) that one cut keeps at least where loss curves decide the widths:
curves of single groups tell what a cut of many groups does only while it is not too large. docs/choices.md compares
numbers of cuts."""


def share_after(step: int, steps: int, share: float, start: float = 1.0) -> float:
    """Returns the budget of one of several prunings; each removes an equal share of the dense network.

    Args:
        step: number of the pruning, counted from 1.
        steps: the number of prunings.
        share: the budget of the last pruning.
        start: the share that the network keeps before the first.
    """
    return start - (start - share) * step / steps


def shares_of_cuts(present: float, share: float, steps: int | None, measured: bool, repeatable: bool) -> list[float]:
    """Returns the budget of each cut on the way to a share, each the same factor below the one before.

    Args:
        present: the share that the model keeps now.
        share: the share to reach.
        steps: the number of cuts; None: as many as `GENTLE` asks for.
        measured: True if loss curves decide the widths.
        repeatable: True if more than one cut is possible.

    Raises:
        InputError: several cuts are asked for and only one is possible.
    """
    if steps is not None:
        check_count("steps", steps, 1)
    if steps is not None and steps > 1 and share >= 1:
        raise InputError(f"steps {steps} divides the way to a budget, but widths alone are cut at once: give a budget")
    if steps is not None and steps > 1 and not repeatable:
        raise InputError("steps must be 1: the criterion's statistics come from training iterations")
    if not 0 < share < present < math.inf:
        return [share]
    if steps is None:
        steps = max(1, math.ceil(math.log(share / present) / math.log(GENTLE) - 0.1)) if measured and repeatable else 1
    return [present * (share / present) ** (step / steps) for step in range(1, steps)] + [share]


def check_each(
    targets: Sequence[Target], done: int, present: PruningPlan | None, check: Callable[[Target], None]
) -> None:
    """Checks that the budgets of the prunings to come can be reached, apart from those that are met already.

    Args:
        targets: the budgets, in their order.
        done: the number of prunings so far.
        present: the plan of all prunings so far, or None.
        check: raises InputError if a budget is out of reach.

    Raises:
        InputError: a budget is out of reach; of those before the last one the message says where they lead.
    """
    for number, target in enumerate(targets, 1):
        if target.share >= 1 or (present is not None and target.kept(present) <= target.share):
            continue
        try:
            check(target)
        except InputError as error:
            if number == len(targets):
                raise
            cut, cuts = done + number, done + len(targets)
            way = f"it is the budget of cut {cut} of {cuts} on the way to {targets[-1]}"
            raise InputError(f"{error}; {way}") from None
