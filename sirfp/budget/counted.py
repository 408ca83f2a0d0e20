"""Budgets of what is counted without running the model: FLOPs and parameters."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from ..structure.choice import Choice
from ..structure.groups import ChannelGroups
from ..structure.plan import QUANTITIES, PruningPlan
from .aligned import choose_aligned
from .allocation import PROMISED, allocate, out_of_reach
from .curve import Curve
from .frozen import check_groups
from .grids import smallest
from .kinds import ChooseWidths, Target, register
from .limits import DEFAULT, Limits
from .width_cost import WidthCost, of_products
from .widths import choose_widths, keep_for, warn_of_guesses

logger = logging.getLogger(__name__)


class Counted(Target):
    """A budget of a quantity that is counted exactly for any choice of channels, without running the model."""

    def dense(self, found: ChannelGroups, before: PruningPlan | None) -> float:
        """Returns the quantity of the original dense model.

        Args:
            found: the groups of the present model.
            before: the plan of earlier prunings; None if the present model is dense.
        """
        pair = self.pair(before) if before is not None else None
        return pair[0] if pair else self.cost(found)()

    def choose(self, model, example_inputs, found, scores, limits=DEFAULT, before=None) -> Choice:
        dense, cost = self.dense(found, before), self.cost(found)

        def within(bounds: Limits) -> np.ndarray:
            return allocate(found, scores, self.share * dense, cost, limits=bounds, dense=dense, what=self.words)

        return self._near(found, choose_aligned(found, within, limits)[0], dense, limits)

    def _near(self, found: ChannelGroups, keep: np.ndarray, dense: float, limits: Limits) -> Choice:
        """Returns the choice of these atoms; logs a warning if it cuts more than the budget asks for."""
        target, kept = self.share * dense, self.cost(found)(keep)
        if not keep.all() and target - kept > PROMISED * target:
            rounding = f" in multiples of {limits.round_to}" if limits.round_to > 1 else ""
            logger.warning(
                "The plan keeps %.3f of the %s where %.3f is allowed: no widths%s that were tried come closer",
                kept / dense, self.words, self.share, rounding,
            )  # fmt: skip
        return self.choice(keep)

    @abstractmethod
    def by_width(self, found: ChannelGroups) -> WidthCost:
        """Returns the quantity as a function of the groups' widths."""

    def chooser(self, model, example_inputs, found, limits=DEFAULT, before=None) -> ChooseWidths:
        dense, cost = self.dense(found, before), self.by_width(found)

        def choose(curves: Mapping[str, Curve], measured: bool = False) -> dict[str, int]:
            how: Any = {"limits": limits, "dense": dense, "what": self.words, "measured": measured}
            return choose_widths(found, curves, self.share * dense, cost, **how)

        return choose

    def choose_by_curves(self, model, example_inputs, found, curves, order, limits=DEFAULT, before=None) -> Choice:
        def within(bounds: Limits) -> np.ndarray:
            return keep_for(found, order, self.chooser(model, example_inputs, found, bounds, before)(curves))

        keep, limits = choose_aligned(found, within, limits)
        warn_of_guesses(found, curves, keep, limits)
        return self._near(found, keep, self.dense(found, before), limits)

    def check_reach(self, model, example_inputs, found, limits=DEFAULT, before=None) -> None:
        dense, least = self.dense(found, before), self.cost(found)(smallest(found, limits))
        if not dense:
            check_groups(found)
            raise InputError(f"on the example inputs the model has no {self.words} to keep a share of: are they empty?")
        if least > self.share * dense:
            check_groups(found)
            raise out_of_reach(self.share * dense, least, dense, self.words, limits)


@register
class Flops(Counted):
    """A budget of FLOPs: the multiply-adds of one call with the example inputs."""

    name, words = "flops", QUANTITIES["flops"]

    def cost(self, found: ChannelGroups) -> Callable[..., float]:
        return found.flops

    def by_width(self, found: ChannelGroups) -> WidthCost:
        return of_products(found.cost.operations, found)

    def pair(self, plan: PruningPlan) -> tuple[float, float]:
        return plan.flops


@register
class Params(Counted):
    """A budget of parameters."""

    name, words = "params", QUANTITIES["params"]

    def cost(self, found: ChannelGroups) -> Callable[..., float]:
        return found.params

    def by_width(self, found: ChannelGroups) -> WidthCost:
        return of_products(found.cost.parameters, found)

    def pair(self, plan: PruningPlan) -> tuple[float, float]:
        return plan.params
