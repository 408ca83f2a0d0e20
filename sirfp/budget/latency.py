"""A budget of latency: a table of layers' times over their widths is solved, then the whole network is measured.

The table holds for the machine, the inputs and the precision at hand: copies of the network, cut to several shares of
their channels, are timed layer by layer. It predicts the latency of any plan, so that one is searched as for a budget
of FLOPs. What the table cannot know (caches, widths that suit the machine) is corrected: the pruned network is timed in
turns with the dense one, and the share that is searched in the table is corrected by the ratio, until both agree.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import nn

from ..errors import InputError
from ..network.forward import call, inference
from ..network.latency import Latency, measure, synchronizer
from ..structure.groups import ChannelGroups
from ..structure.plan import PruningPlan
from ..surgery.cut import apply, cuts_for
from .allocation import allocate, out_of_reach, smallest, widths_at
from .limits import DEFAULT, Limits

logger = logging.getLogger(__name__)

WIDTHS = (1.0, 0.75, 0.5, 0.25)
"""Shares of the channels at which layers are timed, beside the smallest plan; between them time is taken as linear. One
copy of the network is cut and timed for each, so more would cost more time."""
TABLE_REPEATS = 5
"""Timed calls for each point of the table, after one that is not counted. The table need not be exact, as what comes of
it is measured and corrected."""
CLOSE = 0.02
"""The search ends when the measured latency is this close to the budget, relative to it. A closer one would be met
by the noise of the machine rather than by a better plan."""
PROMISED = 0.05
"""How far the latency may be from the budget, relative to it, before a warning says so; docs/budgets.md promises it."""
NEAR = 0.1
"""Measurements whose requested share differs by less than this, relatively, are pooled to estimate the table's error:
close enough that the error is the same, so that their median evens out noise."""
TRIES = 8
"""Plans that are measured at most. It bounds the time; the best of them is taken."""
SECONDS = 2.0
"""The time that one comparison of two networks may take, unless `ROUNDS` asks for more."""
ROUNDS = (9, 101)
"""The least and the most rounds of a comparison: fewer give no quartile to rely on, and of fast networks more would not
say more."""


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of each layer, and of all that runs between layers, as a function of the share of its weight that stays.

    Attributes:
        members: (sides, atoms) how many indices of each side of a layer's weight belong to each atom.
        sizes: (sides,) of the dense weights.
        layers: (layers, 2) the sides of each layer's weight; the last side stands for a side that it does not have.
        shares: (layers + 1, points) of each layer's weight that stays, ascending; the last row of all sides together.
        seconds: (layers + 1, points), never falling.
    """

    members: csr_matrix
    sizes: np.ndarray
    layers: np.ndarray
    shares: np.ndarray
    seconds: np.ndarray

    @staticmethod
    def measure(model: nn.Module, example_inputs: Any, found: ChannelGroups, limits: Limits = DEFAULT) -> LatencyTable:
        """Times copies of a model at several widths, layer by layer."""
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
        index = (np.concatenate(rows), np.concatenate(columns)) if rows else (np.zeros(0, int), np.zeros(0, int))
        members = csr_matrix(
            (np.concatenate(values) if values else np.zeros(0), index), shape=(len(places) + 1, max(1, found.atoms))
        )
        parameters = dict(model.named_parameters()) | dict(model.named_buffers())
        sizes = np.array([parameters[name].shape[dim] for name, dim in places] + [1.0])
        layers = np.array([[row.get((f"{name}.weight", dim), len(places)) for dim in (0, 1)] for name in modules])
        empty = LatencyTable(members, sizes, layers.reshape(-1, 2), np.zeros((0, 0)), np.zeros((0, 0)))
        points = [*(widths_at(found, share, limits) for share in WIDTHS[1:])]
        points = [np.ones(found.atoms, dtype=bool), *points, smallest(found, limits)]
        shares = np.stack([empty.share(keep) for keep in points], 1)[:, ::-1]
        seconds = np.stack([_profile(cut_copy(model, found, k), example_inputs, modules) for k in points], 1)[:, ::-1]
        return LatencyTable(members, sizes, empty.layers, shares, np.maximum.accumulate(seconds, axis=1))

    def share(self, keep: np.ndarray) -> np.ndarray:
        """What stays of each layer, and of all sides together, for atoms kept, (layers + 1,)."""
        left = self.sizes - self.members @ (~keep).astype(float)
        each = (left / self.sizes)[self.layers].prod(axis=1)
        return np.append(each, left.sum() / self.sizes.sum())

    def __call__(self, keep: np.ndarray) -> float:
        """Seconds of the network for atoms kept, (atoms,) of bool: linear between the table's points."""
        at = self.share(keep)
        points = self.shares.shape[1]
        right = np.clip((self.shares < at[:, None]).sum(axis=1), 1, points - 1)
        line = np.arange(len(at))
        x0, x1 = self.shares[line, right - 1], self.shares[line, right]
        y0, y1 = self.seconds[line, right - 1], self.seconds[line, right]
        way = np.divide(at - x0, x1 - x0, out=np.ones_like(at), where=x1 > x0)
        return float((y0 + np.clip(way, 0, 1) * (y1 - y0)).sum())


def meet(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    share: float,
    before: PruningPlan | None = None,
    limits: Limits = DEFAULT,
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Chooses the atoms with which a call takes a share of the dense model's time, on this machine.

    Args:
        share: of the dense model's latency, in (0, 1].
        before: the plan that made the model from the dense one.
        model, example_inputs, found, scores, limits: as in `sirfp.budget.target.Target.choose`.

    Returns:
        The atoms kept, (atoms,) of bool, and the seconds of the model (as it came, cut to them), measured in turns.

    Raises:
        InputError: the smallest plan takes longer, or the dense model's latency is not known.
    """
    wanted = within_reach(model, example_inputs, found, share, before, limits)
    whole, least = np.ones(found.atoms, dtype=bool), smallest(found, limits)
    if wanted >= 1:
        return whole, _compared(model, model, example_inputs)
    table = LatencyTable.measure(model, example_inputs, found, limits)
    dense, bottom = table(whole), table(least) / table(whole) * 1.0001
    requested, factors, tried = wanted, [], []
    for _ in range(TRIES):
        requested = min(1.0, max(bottom, requested))
        keep = allocate(found, scores, requested * dense, table, limits=limits, what="latency")
        smaller = cut_copy(model, found, keep)
        pair = _compared(model, smaller, example_inputs)
        if abs(_ratio(pair) / wanted - 1) <= CLOSE:  # measured once more, as the first may have been lucky
            again = _compared(model, smaller, example_inputs)
            pair = (pair[0] + again[0]) / 2, (pair[1] + again[1]) / 2
        off = abs(_ratio(pair) / wanted - 1)
        logger.info("Latency: %.3f by the table, %.3f measured, %.3f wanted", requested, _ratio(pair), wanted)
        tried.append((off, keep, pair))
        if off <= CLOSE:
            break
        factors.append((requested, _ratio(pair) / requested))
        requested = wanted / _correction(factors)
    off, keep, pair = min(tried, key=lambda one: one[0])
    if off > PROMISED:
        logger.warning(
            "The latency is %.3f of the dense network's where %.3f was asked for: no choice of widths came closer",
            _ratio(pair) * share / wanted, share,
        )  # fmt: skip
    return keep, pair


def within_reach(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    share: float,
    before: PruningPlan | None = None,
    limits: Limits = DEFAULT,
) -> float:
    """The share of its own latency that a budget leaves the model; measures that the smallest plan takes no longer.

    Args and Raises:
        As in `meet`.
    """
    earlier = 1.0
    if before is not None:
        if before.latency is None:
            raise InputError(
                "a latency is a share of the dense network's, but this one was pruned to another budget before and its "
                "plan says no latency: ask for a share of FLOPs or parameters, or begin with the dense network"
            )
        earlier = before.latency[1] / before.latency[0]
    wanted = share / earlier
    if wanted >= 1:
        return wanted
    if not found.groups:
        raise InputError("nothing in the model can be cut: every channel is frozen")
    floor = _ratio(_compared(model, cut_copy(model, found, smallest(found, limits)), example_inputs))
    if floor > wanted * (1 + PROMISED):
        raise out_of_reach(share, floor * earlier, 1.0, "latency", limits)
    return wanted


def _correction(factors: list[tuple[float, float]]) -> float:
    """How many times longer a plan takes than the table says: the median of what was measured near the last try.

    Args:
        factors: (share requested of the table, measured share divided by it) of each try.
    """
    last = factors[-1][0]
    return statistics.median(factor for requested, factor in factors if abs(requested / last - 1) < NEAR)


def cut_copy(model: nn.Module, found: ChannelGroups, keep: np.ndarray) -> nn.Module:
    """A copy cut to chosen atoms, without compensation: it is as fast as the pruned model, but less accurate."""
    copied = copy.deepcopy(model)
    apply(copied, PruningPlan({}, {}, {}, (0, 0), (0, 0), cuts=cuts_for(found, keep)))
    return copied


def _compared(first: nn.Module, second: nn.Module, inputs: Any) -> tuple[float, float]:
    """Seconds of a call of each, timed in turns: the lower quartile, which other work on the machine disturbs least."""
    guess = measure({"": (first, inputs)}, warmup=1, repeats=1)[""].median
    rounds = int(min(ROUNDS[1], max(ROUNDS[0], SECONDS / 2 / guess)))
    times: dict[str, Latency] = measure({"first": (first, inputs), "second": (second, inputs)}, repeats=rounds)
    return times["first"].low, times["second"].low


def _ratio(pair: tuple[float, float]) -> float:
    return pair[1] / pair[0]


def _layers(model: nn.Module) -> dict[str, int]:
    """The modules with a weight, none within another: {name: how many dimensions of the weight channels index}."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight", module._buffers.get("weight"))
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(weight, torch.Tensor) and weight.dim() and not inside:
            found[name] = min(2, weight.dim())
    return found


def _profile(model: nn.Module, inputs: Any, layers: Mapping[str, int]) -> np.ndarray:
    """Median seconds of each layer and, last, of all between them, (layers + 1,)."""
    wait, spent = synchronizer(model), dict.fromkeys(layers, 0.0)
    began: dict[str, float] = {}

    def start(name: str) -> Callable[..., None]:
        def before(*_):
            wait()
            began[name] = time.perf_counter()

        return before

    def stop(name: str) -> Callable[..., None]:
        def after(*_):
            wait()
            spent[name] += time.perf_counter() - began[name]

        return after

    handles = []
    for name in layers:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(start(name)), module.register_forward_hook(stop(name))]
    rows = []
    with inference(model):
        for _ in range(TABLE_REPEATS + 1):
            spent.update(dict.fromkeys(layers, 0.0))
            wait()
            first = time.perf_counter()
            call(model, inputs)
            wait()
            total = time.perf_counter() - first
            rows.append([*spent.values(), total - sum(spent.values())])
    for handle in handles:
        handle.remove()
    return np.array([statistics.median(column) for column in zip(*rows[1:], strict=True)])
