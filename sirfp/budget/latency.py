"""Meets a budget of latency: predicts it from a table of layers' times, then measures the network and corrects.

The table is measured on this machine, with the given inputs, in a runtime (`sirfp.network.clock`): copies of the
network are cut to several shares of their channels and timed layer by layer. The table predicts the latency of any
plan, so a plan is searched as for a budget of FLOPs. The table misses some effects, such as caches and widths that suit
the machine. Therefore the pruned and the dense network are timed in turns. The latency requested from the table is
corrected by the ratio of measurement and prediction, until the measured latency meets the budget.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..network.clock import IN_PYTORCH, Clock
from ..network.untouched import copied_model
from ..reporting.progress import with_progress
from ..structure.groups import ChannelGroups
from ..structure.members import Members
from ..structure.plan import PruningPlan
from ..surgery.cut import cut_by, cuts_for
from .aligned import choose_aligned
from .allocation import allocate, out_of_reach
from .frozen import check_groups
from .grids import smallest, widths_at
from .limits import DEFAULT, Limits

logger = logging.getLogger(__name__)

WIDTHS = (1.0, 0.75, 0.5, 0.25)
"""Shares of the channels at which layers are timed, in addition to the smallest plan. Times between these points are
interpolated linearly. For each point a copy of the network is cut and timed."""
CLOSE = 0.02
"""The search ends when the measured latency is this close to the budget, relative to it. Smaller differences are noise
of the machine."""
PROMISED = 0.05
"""Largest distance of the latency from the budget, relative to it, without a warning; docs/budgets.md promises it."""
NEAR = 0.1
"""Measurements whose requested share differs by less than this, relatively, are pooled to estimate the table's error.
At such close shares the error is about the same, and their median reduces noise."""
TRIES = 8
"""Maximum number of plans that are measured. It bounds the time; the best of these plans is taken."""


@dataclass(frozen=True)
class LatencyTable:
    """The time of each layer, and of all code between layers, as a function of the share of its weight that is kept.

    A side is one of the first two dimensions of a layer's weight.

    Attributes:
        members: number of indices of each side that belong to each atom, (sides, atoms).
        sizes: dense size of each side, (sides,).
        layers: the two sides of each layer's weight, (layers, 2). The last side has size 1 and replaces a missing side.
        shares: kept share of each layer's weight at each point, ascending, (layers + 1, points). The last row is the
            share of all sides together.
        seconds: time of each layer at each point, never falling, (layers + 1, points). The last row is the time between
            layers.
    """

    members: Members
    sizes: np.ndarray
    layers: np.ndarray
    shares: np.ndarray
    seconds: np.ndarray

    @staticmethod
    def measure(
        model: nn.Module,
        example_inputs: Any,
        found: ChannelGroups,
        limits: Limits = DEFAULT,
        clock: Clock = IN_PYTORCH,
    ) -> LatencyTable:
        """Times copies of a model at several widths, layer by layer, in a clock's runtime."""
        modules = _layers(model)
        places = [(f"{name}.weight", dim) for name, sides in modules.items() for dim in range(sides)]
        row = {place: i for i, place in enumerate(places)}
        rows, columns, values = [], [], []
        for group in found:
            atoms = np.arange(found.atoms)[found.spans[group.name]]
            for piece in group.slices:
                if (piece.tensor, piece.dim) in row:
                    rows.append(np.full(len(atoms), row[piece.tensor, piece.dim]))
                    columns.append(atoms)
                    values.append(np.full(len(atoms), piece.index.shape[1]))
        entries = [np.concatenate(parts) if parts else np.zeros(0, int) for parts in (rows, columns, values)]
        order = np.argsort(entries[0], kind="stable")
        members = Members(len(places) + 1, found.atoms, *(each[order] for each in entries))
        parameters = dict(model.named_parameters()) | dict(model.named_buffers())
        sizes = np.array([parameters[name].shape[dim] for name, dim in places] + [1.0])
        layers = np.array([[row.get((f"{name}.weight", dim), len(places)) for dim in (0, 1)] for name in modules])
        empty = LatencyTable(members, sizes, layers.reshape(-1, 2), np.zeros((0, 0)), np.zeros((0, 0)))
        points = [*(widths_at(found, share, limits) for share in WIDTHS[1:])]
        points = [np.ones(found.atoms, dtype=bool), *points, smallest(found, limits)]
        shares = np.stack([empty.share(keep) for keep in points], 1)[:, ::-1]
        turns = with_progress(points, "timing layers at several widths", len(points))  # to prepare takes the most time
        times = clock.layers((cut_copy(model, found, keep) for keep in turns), example_inputs, modules)
        seconds = times.T[:, ::-1]
        return LatencyTable(members, sizes, empty.layers, shares, np.maximum.accumulate(seconds, axis=1))

    def share(self, keep: np.ndarray) -> np.ndarray:
        """Returns the kept share of each layer's weight and, last, of all sides together, (layers + 1,).

        Args:
            keep: the atoms kept, (atoms,) of bool.
        """
        left = self.sizes - self.members @ (~keep).astype(float)
        each = (left / self.sizes)[self.layers].prod(axis=1)
        return np.append(each, left.sum() / self.sizes.sum())

    def __call__(self, keep: np.ndarray) -> float:
        """Returns the seconds of one call for the atoms kept, (atoms,) of bool, interpolated linearly in the table."""
        at = self.share(keep)
        return float(self.between(np.arange(len(at)), at[:, None]).sum())

    def between(self, rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Returns the seconds of rows of the table, (n,) of int, at shares (n, M), interpolated linearly, (n, M)."""
        points = self.shares.shape[1]
        right = (self.shares[rows, :, None] < shares[:, None]).sum(axis=1)
        right = np.minimum(np.maximum(right, 1), points - 1)
        line = rows[:, None]
        x0, x1 = self.shares[line, right - 1], self.shares[line, right]
        y0, y1 = self.seconds[line, right - 1], self.seconds[line, right]
        way = np.divide(shares - x0, x1 - x0, out=np.ones_like(shares), where=x1 > x0)
        return y0 + np.minimum(np.maximum(way, 0), 1) * (y1 - y0)


def meet(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    share: float,
    before: PruningPlan | None = None,
    limits: Limits = DEFAULT,
    clock: Clock = IN_PYTORCH,
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Chooses atoms by their scores so that one call takes a given share of the dense model's time, on this machine.

    The arguments are those of `meet_by`, with scores as in `sirfp.budget.target.Target.choose`.
    """

    def choose(seconds: float, table: LatencyTable) -> np.ndarray:
        def within(bounds: Limits) -> np.ndarray:
            return allocate(found, scores, seconds, table, limits=bounds, what="latency")

        return choose_aligned(found, within, limits)[0]

    return meet_by(model, example_inputs, found, choose, share, before, limits, clock)


def meet_by(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    choose: Callable[[float, LatencyTable], np.ndarray],
    share: float,
    before: PruningPlan | None = None,
    limits: Limits = DEFAULT,
    clock: Clock = IN_PYTORCH,
    measure: Callable[[], LatencyTable] | None = None,
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Chooses atoms so that one call takes a given share of the dense model's time, on this machine.

    Args:
        choose: returns the atoms to keep, (atoms,) of bool, so that a call takes at most some seconds by a table.
        share: the share of the dense model's latency, in (0, 1].
        before: the plan of earlier prunings; None for a dense model.
        clock: the runtime that is timed.
        measure: returns the times of layers; by default they are measured here.
        model, example_inputs, found, limits: as in `sirfp.budget.target.Target.choose`.

    Returns:
        The atoms to keep, (atoms,) of bool, and the seconds of one call (of the given model, of the cut model),
        measured in turns.

    Raises:
        InputError: the smallest plan takes longer, the earlier plan does not record a latency, or the model cannot run
            in the clock's runtime.
    """
    wanted = share_of_present(share, before)
    if wanted < 1:
        check_groups(found)  # before the clock prepares the model, which can take seconds
    compare = clock.against(model, example_inputs)
    if wanted < 1:
        _check_floor(model, compare, found, share, wanted, limits)
    whole, least = np.ones(found.atoms, dtype=bool), smallest(found, limits)
    if wanted >= 1 and not limits.given:
        return whole, compare(model)
    table = measure() if measure else LatencyTable.measure(model, example_inputs, found, limits, clock)
    dense, bottom = table(whole), table(least) / table(whole) * 1.0001
    requested, factors, tried = wanted, [], []
    for _ in with_progress(range(TRIES), "timing plans", TRIES):  # the time left is the most
        requested = min(1.0, max(bottom, requested))
        keep = choose(requested * dense, table)
        smaller = cut_copy(model, found, keep)
        pair = compare(smaller)
        if abs(_ratio(pair) / wanted - 1) <= CLOSE:  # measure again: the first result may be close by chance
            again = compare(smaller)
            pair = (pair[0] + again[0]) / 2, (pair[1] + again[1]) / 2
        off = abs(_ratio(pair) / wanted - 1)
        logger.info("Latency: %.3f by the table, %.3f measured, %.3f wanted", requested, _ratio(pair), wanted)
        tried.append((off, keep, pair))
        if off <= CLOSE or wanted >= 1:  # above 1 only the widths that KEEP gives are cut
            return keep, pair
        factors.append((requested, _ratio(pair) / requested))
        requested = wanted / _correction(factors)
    if min(tried, key=lambda one: one[0])[0] > PROMISED:  # near the smallest plan the table's error changes fast
        pair = compare(cut_copy(model, found, least))
        tried.append((abs(_ratio(pair) / wanted - 1), least, pair))
    off, keep, pair = min(tried, key=lambda one: one[0])
    if off > PROMISED:
        logger.warning(
            "The latency is %.3f of the dense network's where %.3f was asked for: no choice of widths came closer",
            _ratio(pair) * share / wanted, share,
        )  # fmt: skip
    return keep, pair


def check_reach(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    share: float,
    before: PruningPlan | None = None,
    limits: Limits = DEFAULT,
    clock: Clock = IN_PYTORCH,
) -> None:
    """Measures that the smallest plan meets a budget.

    Args and Raises:
        As in `meet`.
    """
    wanted = share_of_present(share, before)
    if wanted < 1:
        check_groups(found)
        _check_floor(model, clock.against(model, example_inputs), found, share, wanted, limits)


def _check_floor(
    model: nn.Module,
    compare: Callable[[nn.Module], tuple[float, float]],
    found: ChannelGroups,
    share: float,
    wanted: float,
    limits: Limits,
) -> None:
    """Raises InputError if the smallest plan takes more than a share of the model's latency.

    Args:
        compare: times the model and a smaller one.
        share: the budget, a share of the dense model's latency.
        wanted: the same as a share of the present model's.
        model, found, limits: as in `meet_by`.
    """
    floor = _ratio(compare(cut_copy(model, found, smallest(found, limits))))
    if floor > wanted * (1 + PROMISED):
        raise out_of_reach(share, floor * share / wanted, 1.0, "latency", limits)


def share_of_present(share: float, before: PruningPlan | None) -> float:
    """Returns a share of the dense model's latency as a share of the present model's.

    Raises:
        InputError: the plan of earlier prunings records no latency.
    """
    if before is None:
        return share
    if before.latency is None:
        raise InputError(
            "a budget of latency is a share of the dense network's latency, but this network was pruned before and "
            "its plan records no latency: give a budget of FLOPs or parameters, or start from the dense network"
        )
    return share / _ratio(before.latency)


def _correction(factors: list[tuple[float, float]]) -> float:
    """Returns the ratio of measured to predicted latency: the median over the tries near the last one.

    Args:
        factors: (share requested from the table, measured share divided by it) of each try.
    """
    last = factors[-1][0]
    return statistics.median(factor for requested, factor in factors if abs(requested / last - 1) < NEAR)


def cut_copy(model: nn.Module, found: ChannelGroups, keep: np.ndarray) -> nn.Module:
    """Returns a copy cut to chosen atoms, without compensation: as fast as the pruned model, but less accurate."""
    copied = copied_model(model)
    cut_by(copied, PruningPlan({}, {}, {}, (0, 0), (0, 0), cuts=cuts_for(found, keep)))
    return copied


def _ratio(pair: tuple[float, float]) -> float:
    return pair[1] / pair[0]


def _layers(model: nn.Module) -> dict[str, int]:
    """Returns the modules with a weight, without those inside another such module.

    Returns:
        {name: number of the weight's dimensions that hold channels}.
    """
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight", module._buffers.get("weight"))
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(weight, torch.Tensor) and weight.dim() and not inside:
            found[name] = min(2, weight.dim())
    return found
