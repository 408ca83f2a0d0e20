"""Budgets of what is timed on this machine: the latency of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..network.clock import IN_PYTORCH, Clock
from ..structure.choice import Choice
from ..structure.groups import ChannelGroups
from ..structure.plan import QUANTITIES, PruningPlan
from .aligned import choose_aligned
from .curve import Curve
from .grids import smallest
from .kinds import TIMED, ChooseWidths, Target, register
from .limits import DEFAULT, Limits
from .width_cost import of_latencies
from .widths import choose_widths, keep_for, warn_of_guesses

if TYPE_CHECKING:
    from .latency import LatencyTable


@register
@dataclass(frozen=True)
class Latency(Target):
    """A budget of latency: the time of one call with the example inputs on this machine (`sirfp.budget.latency`).

    Attributes:
        clock: the runtime that is timed.
    """

    clock: Clock = IN_PYTORCH
    _measured: list[tuple[ChannelGroups, Limits, LatencyTable]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    name, words = TIMED, QUANTITIES[TIMED]

    def cost(self, found: ChannelGroups) -> Callable[..., float]:
        """Returns the function for FLOPs: `sirfp.budget.decision` divides scores by cost before time is measured."""
        return found.flops

    def pair(self, plan: PruningPlan) -> tuple[float, float] | None:
        return plan.latency

    def choose(self, model, example_inputs, found, scores, limits=DEFAULT, before=None) -> Choice:
        from .latency import meet

        return self.choice(*meet(model, example_inputs, found, scores, self.share, before, limits, self.clock))

    def chooser(self, model, example_inputs, found, limits=DEFAULT, before=None) -> ChooseWidths:
        from .latency import share_of_present

        def choose(curves: Mapping[str, Curve], measured: bool = False) -> dict[str, int]:
            table = self._table(model, example_inputs, found, limits)  # only in the process of a run that chooses
            present, least = table(np.ones(found.atoms, dtype=bool)), table(smallest(found, limits))
            seconds = max(least * 1.0001, share_of_present(self.share, before) * present)
            return self._by_table(found, curves, seconds, table, limits, measured)

        return choose

    def _table(self, model, example_inputs, found: ChannelGroups, limits: Limits) -> LatencyTable:
        """Returns the times of layers, measured once for a pruning: loss curves and the choice of widths share them."""
        from .latency import LatencyTable

        if not self._measured or self._measured[0][0] is not found or self._measured[0][1] != limits:
            table = LatencyTable.measure(model, example_inputs, found, limits, self.clock)
            self._measured[:] = [(found, limits, table)]
        return self._measured[0][2]

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

        table = partial(self._table, model, example_inputs, found, limits)
        keep, seconds = meet_by(model, example_inputs, found, choose, self.share, before, limits, self.clock, table)
        warn_of_guesses(found, curves, keep, limits)
        return self.choice(keep, seconds)

    def check_reach(self, model, example_inputs, found, limits=DEFAULT, before=None) -> None:
        from .latency import check_reach

        check_reach(model, example_inputs, found, self.share, before, limits, self.clock)
