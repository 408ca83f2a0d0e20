"""What a budget is a budget of, FLOPs, parameters or measured latency, and the choice of channels that meets it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..structure.groups import ChannelGroups
from ..structure.plan import QUANTITIES, PruningPlan
from .allocation import allocate, out_of_reach, smallest, worth_for_cost


@dataclass(frozen=True)
class Target:
    """A budget: the share of a quantity of the dense model that a plan may keep.

    Attributes:
        quantity: "flops", "params" or "latency".
        share: in (0, 1].
    """

    quantity: str = "flops"
    share: float = 1.0

    @staticmethod
    def of(default: float | None = None, **shares: float | None) -> Target:
        """The one budget that was given.

        Args:
            default: the share of FLOPs where none is; None if one must be given.
            **shares: {name: share or None}, the names ending in the quantity: `keep_flops`.

        Raises:
            InputError: several are given, or none and there is no default, or one lies outside (0, 1].
        """
        given = {name: share for name, share in shares.items() if share is not None}
        if len(given) > 1:
            raise InputError(f"give one budget, not {len(given)}: {_listed(given)}")
        if not given:
            if default is None:
                raise InputError(f"give a budget: one of {', '.join(shares)}")
            return Target("flops", default)
        [(name, share)] = given.items()
        check_share(name, share)
        return Target(_quantity(name), float(share))

    @staticmethod
    def from_config(cfg) -> Target:
        """The one of SIRFP.KEEP_FLOPS, KEEP_PARAMS and KEEP_LATENCY that is below 1, if any: at 1 nothing is pruned.

        Raises:
            InputError: several are, or one lies outside (0, 1].
        """
        shares = {f"SIRFP.KEEP_{quantity.upper()}": cfg.SIRFP[f"KEEP_{quantity.upper()}"] for quantity in QUANTITIES}
        for name, share in shares.items():
            check_share(name, share)
        return Target.of(1.0, **{name: share for name, share in shares.items() if share < 1})

    @property
    def words(self) -> str:
        """ "0.4 of the FLOPs"."""
        return f"{self.share:.4g} of the {QUANTITIES[self.quantity]}"

    def dense(self, found: ChannelGroups, before: PruningPlan | None) -> float:
        """FLOPs or parameters of the dense model, of which `found` may be what earlier prunings left."""
        if before is None:
            return self.cost(found)()
        return before.flops[0] if self.quantity == "flops" else before.params[0]

    def cost(self, found: ChannelGroups):
        """FLOPs or parameters as a function of the atoms kept."""
        return found.params if self.quantity == "params" else found.flops

    def kept(self, plan: PruningPlan) -> float:
        """The share that a plan keeps; of a latency that it does not hold, not a number."""
        pair = plan.latency or (1.0, float("nan")) if self.quantity == "latency" else getattr(plan, self.quantity)
        return pair[1] / pair[0] if pair[0] else 1.0


@dataclass(frozen=True)
class Choice:
    """What a budget led to.

    Attributes:
        keep: the atoms that stay, (atoms,) of bool.
        target: the budget.
        latency: seconds of one call of the model as it came and cut to the atoms, where that was the budget.
    """

    keep: np.ndarray
    target: Target
    latency: tuple[float, float] | None = None


def choose(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    target: Target,
    before: PruningPlan | None = None,
    *,
    partitions: Iterable[str] = (),
    min_keep: float = 0.02,
    round_to: int = 1,
    cost_exponent: float = 0.0,
) -> Choice:
    """Chooses the atoms that stay so that a budget is met.

    Args:
        model: the model as it is; nothing in it changes.
        example_inputs: what it is called with where latency is measured.
        found: its groups.
        scores: worth of each channel, {group: (size,)}.
        target: the budget, of the dense model.
        before: the plan of earlier prunings, whose dense model counts.
        partitions, min_keep, round_to: as in `sirfp.budget.allocation.allocate`.
        cost_exponent: scores are divided by this power of what a channel costs of the budget's quantity; of FLOPs
            where that is latency (`sirfp.budget.allocation.worth_for_cost`).

    Raises:
        InputError: the budget is out of reach (the message names the least), or a score is not finite.
    """
    for name, score in scores.items():
        if not score.isfinite().all():
            raise InputError(
                f"the worth of the channels of {name!r} is not finite: are the model's weights? "
                "Start from weights that are, such as an earlier checkpoint's"
            )
    scores = worth_for_cost(found, scores, target.cost(found), cost_exponent)
    limits = {"partitions": partitions, "min_keep": min_keep, "round_to": round_to}
    if target.quantity == "latency":
        from .latency import meet

        keep, seconds = meet(model, example_inputs, found, scores, target.share, before, **limits)
        return Choice(keep, target, seconds)
    dense = target.dense(found, before)
    keep = allocate(
        found, scores, target.share * dense, target.cost(found),
        dense=dense, what=QUANTITIES[target.quantity], **limits,
    )  # fmt: skip
    return Choice(keep, target)


def check_reach(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    target: Target,
    before: PruningPlan | None = None,
    *,
    min_keep: float = 0.02,
    round_to: int = 1,
) -> None:
    """Raises InputError if the smallest plan keeps more than the budget; the arguments are those of `choose`."""
    if target.quantity == "latency":
        from .latency import within_reach

        within_reach(model, example_inputs, found, target.share, before, min_keep, round_to)
        return
    dense, fewest = target.dense(found, before), target.cost(found)(smallest(found, min_keep, round_to))
    if fewest > target.share * dense:
        raise out_of_reach(target.share * dense, fewest, dense, QUANTITIES[target.quantity], min_keep, round_to)


def check_share(name: str, value: float, zero: bool = False) -> None:
    """Raises InputError unless a number lies in (0, 1], or in [0, 1] with `zero`."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not ok or not (0 <= value <= 1 if zero else 0 < value <= 1):
        raise InputError(f"{name} must lie in {'[' if zero else '('}0, 1], got {value!r}")


def _quantity(name: str) -> str:
    return next(quantity for quantity in QUANTITIES if name.lower().endswith(quantity))


def _listed(given: Mapping[str, float]) -> str:
    return " and ".join(f"{name} {share}" for name, share in given.items())
