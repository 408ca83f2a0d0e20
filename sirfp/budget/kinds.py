"""What a budget is: the share of one of the dense model's quantities that a plan may keep; the table of kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..network.clock import Clock
from ..structure.choice import Choice
from ..structure.groups import ChannelGroups
from ..structure.plan import PruningPlan
from .curve import Curve
from .limits import DEFAULT, Limits, check_share

TIMED = "latency"
"""The name of the quantity that is timed by a clock."""


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
        if clock is not None and not any(name.lower().endswith(TIMED) for name in given):
            name = next((name for name in shares if name.lower().endswith(TIMED)), "keep_latency")
            raise InputError(f"{clock.words} is to time a budget of latency, but no such budget is given: give {name}")
        if not given:
            if default is None:
                raise InputError(f"give a budget: one of {', '.join(shares)}")
            return TARGETS["flops"](default)
        [(name, share)] = given.items()
        check_share(name, share)
        kind = next(kind for quantity, kind in TARGETS.items() if name.lower().endswith(quantity))
        return kind(float(share)) if clock is None else kind(float(share), clock)

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
            limits: the limits of the plan. A group whose width they give keeps exactly that many atoms.
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


TARGETS: dict[str, Callable[..., Target]] = {}
"""{name of a quantity: the class of its budgets}. `sirfp.budget.target` fills it."""

Kind = TypeVar("Kind", bound=type[Target])


def register(kind: Kind) -> Kind:
    """Adds a class of budgets to the table; a decorator."""
    TARGETS[kind.name] = kind
    return kind
