"""Budgets: the share of the dense model's FLOPs, parameters or measured latency that a plan may keep."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..network.clock import IN_PYTORCH, Clock
from ..structure.choice import Choice
from ..structure.groups import ChannelGroups
from ..structure.plan import QUANTITIES, PruningPlan
from .aligned import choose_aligned
from .allocation import PROMISED, allocate, out_of_reach
from .curve import Curve
from .frozen import check_groups
from .grids import smallest
from .limits import DEFAULT, Limits, check_share
from .width_cost import WidthCost, of_latencies, of_products
from .widths import choose_widths, keep_for, warn_of_guesses

if TYPE_CHECKING:
    from .latency import LatencyTable

logger = logging.getLogger(__name__)

KEEP_FLOPS = 0.4
"""The share of the FLOPs that `sirfp.prune` and `sirfp prune` keep if no budget is given; the paper removes 60%."""


class ChooseWidths(Protocol):
    """Chooses the widths that loss curves suggest for a budget."""

    def __call__(self, curves: Mapping[str, Curve], measured: bool = False) -> dict[str, int]:
        """Returns {group: number of atoms}. The arguments are those of `sirfp.budget.widths.choose_widths`."""


@dataclass(frozen=True)
class Target(ABC):
    """A budget: the share of a quantity of the dense model that a plan may keep.

    A subclass defines the quantity's value for a choice of channels, and how to find a choice that meets the budget.

    Attributes:
        share: the share that may be kept, in (0, 1].
        name: name of the quantity: the suffix of its config key (KEEP_...) and argument (keep_...). The plan records
            it.
        words: name of the quantity in messages.
    """

    share: float = 1.0
    name: ClassVar[str]
    words: ClassVar[str]

    @staticmethod
    def of(default: float | None = None, clock: Clock | None = None, **shares: float | None) -> Target:
        """Returns the one budget that is given.

        Args:
            default: the share of FLOPs if no budget is given; if None, a budget must be given.
            clock: the runtime in which a budget of latency is timed; by default PyTorch.
            **shares: {name: share or None}. Each name ends in its quantity, e.g. `keep_flops`.

        Raises:
            InputError: several budgets are given, or none and there is no default, a share is outside (0, 1], or there
                is a clock for a budget of another quantity.
        """
        given = {name: share for name, share in shares.items() if share is not None}
        if len(given) > 1:
            listed = " and ".join(f"{name} {share}" for name, share in given.items())
            raise InputError(f"give one budget, not {len(given)}: {listed}")
        if clock is not None and not any(name.lower().endswith(Latency.name) for name in given):
            name = next((name for name in shares if name.lower().endswith(Latency.name)), "keep_latency")
            raise InputError(f"{clock.words} is to time a budget of latency, but no such budget is given: give {name}")
        if not given:
            if default is None:
                raise InputError(f"give a budget: one of {', '.join(shares)}")
            return Flops(default)
        [(name, share)] = given.items()
        check_share(name, share)
        kind = next(kind for quantity, kind in TARGETS.items() if name.lower().endswith(quantity))
        return kind(float(share)) if clock is None else Latency(float(share), clock)

    @staticmethod
    def from_config(cfg) -> Target:
        """Returns the budget among SIRFP.KEEP_FLOPS, KEEP_PARAMS and KEEP_LATENCY that is below 1.

        If none is below 1, the budget allows all FLOPs, so that nothing is pruned.

        Raises:
            InputError: several are below 1, or one is outside (0, 1].
        """
        shares = {f"SIRFP.KEEP_{name.upper()}": cfg.SIRFP[f"KEEP_{name.upper()}"] for name in TARGETS}
        for name, share in shares.items():
            check_share(name, share)
        return Target.of(1.0, **{name: share for name, share in shares.items() if share < 1})

    def __str__(self) -> str:
        """Returns the budget in words, e.g. "0.4 of the FLOPs"."""
        return f"{self.share:.4g} of the {self.words}"

    @abstractmethod
    def cost(self, found: ChannelGroups) -> Callable[..., float]:
        """Returns a function that computes the cost of the atoms kept, (atoms,) of bool; of all atoms by default."""

    @abstractmethod
    def pair(self, plan: PruningPlan) -> tuple[float, float] | None:
        """Returns the (dense, pruned) quantity that a plan records; None if the plan does not record it."""

    def kept(self, plan: PruningPlan) -> float:
        """Returns the share of the quantity that a plan keeps; NaN if the plan does not record it."""
        dense, pruned = self.pair(plan) or (1.0, float("nan"))
        return pruned / dense if dense else 1.0

    @abstractmethod
    def choose(
        self,
        model: nn.Module,
        example_inputs: Any,
        found: ChannelGroups,
        scores: Mapping[str, torch.Tensor],
        limits: Limits = DEFAULT,
        before: PruningPlan | None = None,
    ) -> Choice:
        """Chooses the atoms to keep so that the budget is met.

        Args:
            model: the model to prune; it is not changed.
            example_inputs: inputs of the model, for measuring latency.
            found: the model's groups.
            scores: worth of each channel, {group: (size,)}.
            limits: the limits of the plan. Groups whose width it gives keep as many atoms.
            before: the plan of earlier prunings. The budget is then a share of the model that was dense before them.

        Raises:
            InputError: the budget is out of reach (the message names the smallest possible), or a score is not finite.
        """

    @abstractmethod
    def choose_by_curves(
        self,
        model: nn.Module,
        example_inputs: Any,
        found: ChannelGroups,
        curves: Mapping[str, Curve],
        order: Mapping[str, torch.Tensor],
        limits: Limits = DEFAULT,
        before: PruningPlan | None = None,
    ) -> Choice:
        """Chooses the atoms to keep: as many in each group as its loss curve suggests, those that are removed last.

        A warning says how many groups have to be narrower than their curves were measured.

        Args:
            curves: {group: its loss curve}, of this model (`sirfp.budget.widths.choose_widths`).
            order: {group: its atoms from the first one to remove to the last, (size,) of int}.
            model, example_inputs, found, limits, before: as in `choose`.

        Raises:
            InputError: the budget is out of reach, or a curve is missing or belongs to a group of another size.
        """

    @abstractmethod
    def chooser(
        self,
        model: nn.Module,
        example_inputs: Any,
        found: ChannelGroups,
        limits: Limits = DEFAULT,
        before: PruningPlan | None = None,
    ) -> ChooseWidths:
        """Returns a function that chooses the widths that curves suggest, without timing plans and without warnings.

        The arguments are those of `choose_by_curves`.
        """

    @abstractmethod
    def check_reach(
        self,
        model: nn.Module,
        example_inputs: Any,
        found: ChannelGroups,
        limits: Limits = DEFAULT,
        before: PruningPlan | None = None,
    ) -> None:
        """Raises InputError if the smallest plan keeps more than the budget. The arguments are those of `choose`."""

    def choice(self, keep: np.ndarray, latency: tuple[float, float] | None = None) -> Choice:
        """Returns a choice that records this budget."""
        return Choice(keep, (self.name, self.share), latency)


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
        if least > self.share * dense:
            check_groups(found)
            raise out_of_reach(self.share * dense, least, dense, self.words, limits)


class Flops(Counted):
    """A budget of FLOPs: the multiply-adds of one call with the example inputs."""

    name, words = "flops", QUANTITIES["flops"]

    def cost(self, found: ChannelGroups) -> Callable[..., float]:
        return found.flops

    def by_width(self, found: ChannelGroups) -> WidthCost:
        return of_products(found.cost.operations, found)

    def pair(self, plan: PruningPlan) -> tuple[float, float]:
        return plan.flops


class Params(Counted):
    """A budget of parameters."""

    name, words = "params", QUANTITIES["params"]

    def cost(self, found: ChannelGroups) -> Callable[..., float]:
        return found.params

    def by_width(self, found: ChannelGroups) -> WidthCost:
        return of_products(found.cost.parameters, found)

    def pair(self, plan: PruningPlan) -> tuple[float, float]:
        return plan.params


@dataclass(frozen=True)
class Latency(Target):
    """A budget of latency: the time of one call with the example inputs on this machine (`sirfp.budget.latency`).

    Attributes:
        clock: the runtime that is timed.
    """

    clock: Clock = IN_PYTORCH
    name, words = "latency", QUANTITIES["latency"]

    def cost(self, found: ChannelGroups) -> Callable[..., float]:
        """Returns the function for FLOPs: `sirfp.budget.decision` divides scores by cost before time is measured."""
        return found.flops

    def pair(self, plan: PruningPlan) -> tuple[float, float] | None:
        return plan.latency

    def choose(self, model, example_inputs, found, scores, limits=DEFAULT, before=None) -> Choice:
        from .latency import meet

        return self.choice(*meet(model, example_inputs, found, scores, self.share, before, limits, self.clock))

    def chooser(self, model, example_inputs, found, limits=DEFAULT, before=None) -> ChooseWidths:
        from .latency import LatencyTable, share_of_present

        @cache
        def table() -> LatencyTable:  # measured by the first call: other processes of a run do not choose
            return LatencyTable.measure(model, example_inputs, found, limits, self.clock)

        def choose(curves: Mapping[str, Curve], measured: bool = False) -> dict[str, int]:
            present, least = table()(np.ones(found.atoms, dtype=bool)), table()(smallest(found, limits))
            seconds = max(least * 1.0001, share_of_present(self.share, before) * present)
            return self._by_table(found, curves, seconds, table(), limits, measured)

        return choose

    def _by_table(
        self, found, curves, seconds: float, table: LatencyTable, limits: Limits, measured: bool = False
    ) -> dict[str, int]:
        """Returns the widths that curves suggest for so many seconds of a call, as a table predicts them."""
        cost = of_latencies(table, found)
        return choose_widths(found, curves, seconds, cost, limits=limits, what=self.words, measured=measured)

    def choose_by_curves(self, model, example_inputs, found, curves, order, limits=DEFAULT, before=None) -> Choice:
        from .latency import meet_by

        def choose(seconds: float, table: LatencyTable) -> np.ndarray:
            def within(bounds: Limits) -> np.ndarray:
                return keep_for(found, order, self._by_table(found, curves, seconds, table, bounds))

            return choose_aligned(found, within, limits)[0]

        keep, seconds = meet_by(model, example_inputs, found, choose, self.share, before, limits, self.clock)
        warn_of_guesses(found, curves, keep, limits)
        return self.choice(keep, seconds)

    def check_reach(self, model, example_inputs, found, limits=DEFAULT, before=None) -> None:
        from .latency import check_reach

        check_reach(model, example_inputs, found, self.share, before, limits, self.clock)


TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (Flops, Params, Latency)}
"""{name of a quantity: the class of its budgets}."""
